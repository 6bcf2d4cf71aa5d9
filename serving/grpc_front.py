"""The gRPC front: the Open Inference Protocol's service with Triton's extensions, beside HTTP in the same process.

The messages are those of NVIDIA's client, so that it is understood whole. A request is checked as one over HTTP is, and
a deadline that gRPC carries is the request's own where it states no `timeout`.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from functools import wraps
from importlib.metadata import version
from typing import Any, TypeAlias

import grpc
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from tritonclient.grpc import service_pb2 as messages

from compiler.target import CompilerError, DataError
from serving.answers import Answer, BuildFailed, Overloaded
from serving.described import describe_configuration, describe_tensors
from serving.model import ServedModel, find_model
from serving.protocol import DATATYPES, EXTENSIONS, REQUEST_KEY, BadRequest, Inference, Signature, make_inference

SERVICE = "inference.GRPCInferenceService"

CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
"""Datatype → the field of `InferTensorContents` that holds its elements; FP16 is sent raw."""

STATUS = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
}
"""HTTP's status of a refused request → gRPC's."""

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Method: TypeAlias = Callable[[Any, Context], Awaitable[Message]]


class GrpcFront:
    """Answers over gRPC for the models.

    Args:
        models: Name → model.
    """

    def __init__(self, models: Mapping[str, ServedModel]) -> None:
        self._models = models
        most_bytes = max(model.current.signature.most_bytes for model in models.values())
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", most_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),  # a second server on the port is refused
            ]
        )
        self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, self._handlers())])

    async def start(self, address: str) -> int:
        """Listens; returns the port.

        Args:
            address: Host and port; port 0 takes a free one.

        Raises:
            DataError: Nothing can listen there.
        """
        try:
            port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise DataError(
                f"{address} cannot be listened at",
                where="--grpc-port",
                remedy="Choose another --grpc-port, or stop what listens there.",
            ) from error
        await self._server.start()
        return int(port)

    async def stop(self, grace_s: float) -> None:
        """Lets in nobody more and waits for those who were let in."""
        await self._server.stop(grace_s)

    def _handlers(self) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        methods: dict[str, Method] = {
            "ServerLive": self._live,
            "ServerReady": self._ready,
            "ServerMetadata": self._server_metadata,
            "ModelReady": self._model_ready,
            "ModelMetadata": self._metadata,
            "ModelConfig": self._config,
            "ModelStatistics": self._statistics,
            "ModelInfer": self._infer,
            "RepositoryIndex": self._index,
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
        }
        described = messages.DESCRIPTOR.services_by_name[SERVICE.rpartition(".")[2]].methods_by_name
        return {
            name: grpc.unary_unary_rpc_method_handler(
                _guarded(method),
                request_deserializer=getattr(messages, described[name].input_type.name).FromString,
                response_serializer=_to_bytes,
            )
            for name, method in methods.items()
        }

    def _model(self, name: str) -> ServedModel:
        return find_model(self._models, name)

    async def _live(self, request: Any, context: Context) -> Message:
        return messages.ServerLiveResponse(live=True)

    async def _ready(self, request: Any, context: Context) -> Message:
        return messages.ServerReadyResponse(ready=all(model.is_ready for model in self._models.values()))

    async def _server_metadata(self, request: Any, context: Context) -> Message:
        return messages.ServerMetadataResponse(name="fleetc", version=version("fleetc"), extensions=EXTENSIONS)

    async def _model_ready(self, request: Any, context: Context) -> Message:
        model = self._model(request.name)
        is_ready = model.is_loaded and model.deployment(request.version).is_ready
        return messages.ModelReadyResponse(ready=is_ready)

    async def _metadata(self, request: Any, context: Context) -> Message:
        model = self._model(request.name)
        deployment = model.deployment(request.version)
        return messages.ModelMetadataResponse(**describe_tensors(model.name, deployment.version, deployment.signature))

    async def _config(self, request: Any, context: Context) -> Message:
        model = self._model(request.name)
        config = describe_configuration(model.name, model.deployment(request.version).signature)
        return ParseDict({"config": config}, messages.ModelConfigResponse())

    async def _statistics(self, request: Any, context: Context) -> Message:
        named = [self._model(request.name)] if request.name else self._models.values()
        rows = [model.stats() for model in named if model.is_loaded]
        return ParseDict({"model_stats": rows}, messages.ModelStatisticsResponse())

    async def _index(self, request: Any, context: Context) -> Message:
        rows = [model.index_row() for model in self._models.values() if model.is_ready or not request.ready]
        return messages.RepositoryIndexResponse(models=rows)

    async def _load(self, request: Any, context: Context) -> Message:
        if request.parameters:
            raise BadRequest("parameters: a model is loaded from its own folder")
        await self._model(request.model_name).load()
        return messages.RepositoryModelLoadResponse()

    async def _unload(self, request: Any, context: Context) -> Message:
        await self._model(request.model_name).unload()
        return messages.RepositoryModelUnloadResponse()

    async def _infer(self, request: Any, context: Context) -> Message:
        model = self._model(request.model_name)
        deployment = model.deployment(request.model_version)
        inference = read_message(request, deployment.signature, left_s=context.time_remaining())
        metadata = dict(context.invocation_metadata() or ())
        key = str(metadata.get(REQUEST_KEY) or context.peer().rpartition(":")[0])
        answer = await model.infer(inference, deployment, key)
        return write_message(model.name, deployment.version, inference, answer)


def read_message(request: Any, signature: Signature, *, left_s: float | None) -> Inference:
    """A `ModelInferRequest`, checked against what the model takes.

    Args:
        request: The message.
        signature: What the model takes.
        left_s: Seconds of the call's own deadline; None where it has none.

    Raises:
        BadRequest: It does not fit the model.
    """
    raw = list(request.raw_input_contents)
    if raw and len(raw) != len(request.inputs):
        raise BadRequest(f"raw_input_contents: {len(raw)} for {len(request.inputs)} inputs")
    parameters = _parameters(request.parameters)
    if left_s is not None and not parameters.get("timeout"):
        parameters["timeout"] = max(1, math.floor(left_s * 1e6))
    tensors = [
        {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape), **_data(tensor, raw, place)}
        for place, tensor in enumerate(request.inputs)
    ]
    wanted = [{"name": output.name} for output in request.outputs]
    read = {"id": request.id, "parameters": parameters, "inputs": tensors, "outputs": wanted}
    return make_inference(read, memoryview(b"".join(raw)), signature)


def write_message(model: str, version: str, inference: Inference, answer: Answer) -> Message:
    """A `ModelInferResponse`; its tensors are raw."""
    response = messages.ModelInferResponse(model_name=model, model_version=version, id=inference.identity)
    for name, value in answer.facts.items():
        field = {bool: "bool_param", float: "double_param", str: "string_param"}[type(value)]
        setattr(response.parameters[name], field, value)
    for want in inference.outputs:
        array = answer.outputs[want.name]
        response.outputs.add(name=want.name, datatype=DATATYPES[array.dtype.name], shape=array.shape)
        response.raw_output_contents.append(array.tobytes())
    return response


def _to_bytes(message: Message) -> bytes:
    return bytes(message.SerializeToString())


def _parameters(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Name → value, whichever field of its type holds it."""
    chosen = {name: field.WhichOneof("parameter_choice") for name, field in fields.items()}
    return {name: getattr(fields[name], choice) for name, choice in chosen.items() if choice}


def _data(tensor: Any, raw: list[bytes], place: int) -> dict[str, Any]:
    if raw:
        if tensor.HasField("contents"):
            raise BadRequest(f"input '{tensor.name[:80]}': has both contents and raw_input_contents")
        return {"parameters": {"binary_data_size": len(raw[place])}}
    if tensor.datatype not in CONTENTS:
        raise BadRequest(f"input '{tensor.name[:80]}': {tensor.datatype[:20]!r} has no contents; send it raw")
    return {"data": list(getattr(tensor.contents, CONTENTS[tensor.datatype]))}


def _guarded(method: Method) -> Method:
    """Every failure is a status with words."""

    @wraps(method)
    async def answer(request: Any, context: Context) -> Message:
        try:
            return await method(request, context)
        except BadRequest as error:
            status, what = STATUS.get(error.status, grpc.StatusCode.INVALID_ARGUMENT), error.what
        except Overloaded as error:
            status, what = grpc.StatusCode.UNAVAILABLE, error.what
            context.set_trailing_metadata(_waiting(error))
        except BuildFailed as error:
            status, what = grpc.StatusCode.UNAVAILABLE, str(error)
        except CompilerError as error:
            status, what = grpc.StatusCode.FAILED_PRECONDITION, str(error)
        await context.abort(status, what)
        raise AssertionError("abort raises")  # pragma: no cover

    return answer


def _waiting(error: Overloaded) -> tuple[tuple[str, str], ...]:
    """When to try again, as gRPC's clients read it, and the wait that was predicted."""
    rows = [("grpc-retry-pushback-ms", str(max(1, math.ceil(error.retry_after_s * 1e3))))]
    if math.isfinite(error.wait_s):
        rows.append(("fleetc-predicted-wait-ms", f"{error.wait_s * 1e3:.1f}"))
    return tuple(rows)
