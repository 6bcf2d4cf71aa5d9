/* A board for TVM's tracker without Python: registers, takes one session after another, each in a process of its own.
 *
 * The session itself (copies, loading, timing) is served by libtvm_runtime's own `rpc.ServerLoop`; here stand what TVM
 * does in Python around it: the tracker's messages, the handshake, and the folder in which uploaded files lie.
 */
#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <tvm/ffi/c_api.h>
#include <unistd.h>

#include "tiles.h"

enum { MAGIC = 0xFF271, MISMATCH = 0xFF273, TRACKER_MAGIC = 0x2F271 };
enum { PUT = 3, UPDATE_INFO = 5, PENDING = 7 };
enum { MAX_MESSAGE = 1 << 16, MAX_KEY = 64, PING_MS = 2000, UNUSED_PINGS = 3 };

static char folder[] = "/tmp/fleetc-serve-XXXXXX";

static _Noreturn void die(const char *format, ...) {
  va_list values;
  va_start(values, format);
  fputs("serve: ", stderr);
  vfprintf(stderr, format, values);
  fputc('\n', stderr);
  va_end(values);
  exit(1);
}

/* Whole or not at all; 0 where the other side is gone. */
static int put_bytes(int fd, const void *data, size_t bytes) {
  for (const char *at = data; bytes;) {
    ssize_t done = send(fd, at, bytes, MSG_NOSIGNAL);
    if (done <= 0) return 0;
    at += done, bytes -= (size_t)done;
  }
  return 1;
}

static int get_bytes(int fd, void *data, size_t bytes) {
  for (char *at = data; bytes;) {
    ssize_t done = recv(fd, at, bytes, 0);
    if (done <= 0) return 0;
    at += done, bytes -= (size_t)done;
  }
  return 1;
}

static int put_number(int fd, int32_t value) { return put_bytes(fd, &value, sizeof value); }

static int put_text(int fd, const char *text) { return put_number(fd, (int32_t)strlen(text)) && put_bytes(fd, text, strlen(text)); }

static int get_text(int fd, char *text, size_t size) {
  int32_t length;
  if (!get_bytes(fd, &length, sizeof length) || length < 0 || (size_t)length >= size) return 0;
  text[length] = '\0';
  return get_bytes(fd, text, (size_t)length);
}

/* Sends a message to the tracker and takes its answer into `answer`. */
static void ask(int tracker, const char *message, char *answer) {
  if (!put_text(tracker, message) || !get_text(tracker, answer, MAX_MESSAGE)) die("the tracker is gone");
}

static int connect_to(const char *host, const char *port) {
  struct addrinfo wanted = {.ai_socktype = SOCK_STREAM}, *found;
  if (getaddrinfo(host, port, &wanted, &found) != 0) die("no address of %s:%s", host, port);
  int fd = socket(found->ai_family, SOCK_STREAM, 0);
  if (fd < 0 || connect(fd, found->ai_addr, found->ai_addrlen) != 0) die("no tracker at %s:%s: %s", host, port, strerror(errno));
  freeaddrinfo(found);
  return fd;
}

static int listen_anywhere(int *port) {
  struct sockaddr_in place = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_ANY)}};
  socklen_t size = sizeof place;
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  if (fd < 0 || bind(fd, (struct sockaddr *)&place, size) != 0 || listen(fd, 1) != 0 ||
      getsockname(fd, (struct sockaddr *)&place, &size) != 0)
    die("cannot listen: %s", strerror(errno));
  *port = ntohs(place.sin_port);
  return fd;
}

/* Tells the tracker that this board is free, under a match key nobody can guess. */
static void offer(int tracker, const char *key, int port, char *match) {
  static char message[MAX_MESSAGE], answer[MAX_MESSAGE];
  uint64_t random;
  if (getrandom(&random, sizeof random, 0) != sizeof random) die("no random numbers: %s", strerror(errno));
  snprintf(match, 2 * MAX_KEY, "%s:%016llx", key, (unsigned long long)random);
  snprintf(message, sizeof message, "[%d, \"%s\", [%d, \"%s\"], null]", PUT, key, port, match);
  ask(tracker, message, answer);
}

/* Whether the one who connected was sent by the tracker. Of its options the session's time in seconds is kept. */
static int greet(int client, const char *key, const char *match, int *seconds) {
  char text[1024], wanted[3 * MAX_KEY];
  int32_t magic;
  if (!get_bytes(client, &magic, sizeof magic) || magic != MAGIC || !get_text(client, text, sizeof text)) return 0;
  int length = snprintf(wanted, sizeof wanted, "client:%s", match);
  if (strncmp(text, wanted, (size_t)length) != 0 || (text[length] && text[length] != ' ')) return put_number(client, MISMATCH), 0;
  const char *option = strstr(text + length, "-timeout=");
  *seconds = option ? atoi(option + strlen("-timeout=")) : 0;
  snprintf(wanted, sizeof wanted, "server:%s", key);
  return put_number(client, MAGIC) && put_text(client, wanted);
}

/* The next client; the match key is renewed where someone took it and never came. */
static int accept_client(int server, int tracker, const char *key, int port, int *seconds) {
  static char answer[MAX_MESSAGE];
  char match[2 * MAX_KEY], message[16];
  offer(tracker, key, port, match);
  for (int unused = 0;;) {
    struct pollfd ready = {.fd = server, .events = POLLIN};
    if (poll(&ready, 1, PING_MS) == 1) {
      int client = accept(server, NULL, NULL);
      if (client >= 0 && greet(client, key, match, seconds)) return client;
      if (client >= 0) close(client);
      continue;
    }
    snprintf(message, sizeof message, "[%d]", PENDING);
    ask(tracker, message, answer);
    unused = strstr(answer, match) ? 0 : unused + 1;
    if (unused > UNUSED_PINGS) offer(tracker, key, port, match), unused = 0;
  }
}

static TVMFFIByteArray bytes_of(const TVMFFIAny *value) {
  if (value->type_index == kTVMFFIRawStr) return (TVMFFIByteArray){value->v_c_str, strlen(value->v_c_str)};
  if (value->type_index == kTVMFFISmallStr) return (TVMFFIByteArray){value->v_bytes, value->small_str_len};
  return *(const TVMFFIByteArray *)((const char *)value->v_obj + sizeof(TVMFFIObject));
}

/* The file of that name in the session's folder, whatever folder the client names. */
static void place_of(const TVMFFIAny *name, char *path, size_t size) {
  TVMFFIByteArray given = bytes_of(name);
  size_t first = given.size;
  while (first > 0 && given.data[first - 1] != '/') --first;
  snprintf(path, size, "%s/%.*s", folder, (int)(given.size - first), given.data + first);
}

static int workpath(void *self, const TVMFFIAny *given, int32_t count, TVMFFIAny *result) {
  (void)self, (void)count;
  char path[512];
  place_of(&given[0], path, sizeof path);
  TVMFFIByteArray text = {path, strlen(path)};
  return TVMFFIStringFromByteArray(&text, result);
}

static TVMFFIObjectHandle global_function(const char *name) {
  TVMFFIByteArray key = {name, strlen(name)};
  TVMFFIObjectHandle function = NULL;
  if (TVMFFIFunctionGetGlobal(&key, &function) != 0 || !function) die("the libraries in runtime/ have no function %s", name);
  return function;
}

static int load_module(void *self, const TVMFFIAny *given, int32_t count, TVMFFIAny *result) {
  (void)self, (void)count;
  char path[512];
  place_of(&given[0], path, sizeof path);
  TVMFFIAny argument = {.type_index = kTVMFFIRawStr, .v_c_str = path};
  return TVMFFIFunctionCall(global_function("ffi.ModuleLoadFromFile"), &argument, 1, result);
}

static void define(const char *name, TVMFFISafeCallType body) {
  TVMFFIByteArray key = {name, strlen(name)};
  TVMFFIObjectHandle function = NULL;
  if (TVMFFIFunctionCreate(NULL, body, NULL, &function) != 0 || TVMFFIFunctionSetGlobal(&key, function, 1) != 0)
    die("cannot define %s", name);
}

/* One session, until the client leaves or its time is over. */
static _Noreturn void serve(int client, int seconds) {
  alarm(seconds > 0 ? (unsigned)seconds : 0);
  define("tvm.rpc.server.workpath", workpath);
  define("tvm.rpc.server.load_module", load_module);
  TVMFFIAny argument = {.type_index = kTVMFFIInt, .v_int64 = client}, result = {.type_index = kTVMFFINone};
  _exit(TVMFFIFunctionCall(global_function("rpc.ServerLoop"), &argument, 1, &result) != 0);
}

static void hold_session(int client, int seconds) {
  char command[sizeof folder + 16];
  strcpy(strrchr(folder, '-'), "-XXXXXX");
  if (!mkdtemp(folder)) die("cannot make a folder in /tmp: %s", strerror(errno));
  pid_t child = fork();
  if (child < 0) die("cannot start a process: %s", strerror(errno));
  if (child == 0) serve(client, seconds);
  close(client);
  int status = 0;
  waitpid(child, &status, 0);
  if (status) fprintf(stderr, "serve: a session ended with status %d\n", status);
  snprintf(command, sizeof command, "rm -rf %s", folder);
  if (system(command) != 0) fprintf(stderr, "serve: %s stays\n", folder);
}

int main(int argc, char **argv) {
  if (argc != 4) {
    fputs("Usage: serve HOST PORT KEY\n\nServes kernels of this board to TVM's tracker at HOST:PORT, under KEY.\n", stderr);
    return 2;
  }
  /* A kernel that is measured may use them; its process inherits the permission. Others do without. */
  request_tiles();
  const char *key = argv[3];
  for (const char *at = key; *at; ++at)
    if (!isalnum((unsigned char)*at) && !strchr("._-", *at)) die("a key is of letters, digits, '.', '_' and '-'");
  if (!*key || strlen(key) >= MAX_KEY) die("a key has 1 to %d characters", MAX_KEY - 1);
  int port, seconds, tracker = connect_to(argv[1], argv[2]), server = listen_anywhere(&port);
  int32_t magic;
  if (!put_number(tracker, TRACKER_MAGIC) || !get_bytes(tracker, &magic, sizeof magic) || magic != TRACKER_MAGIC)
    die("%s:%s is no tracker of TVM", argv[1], argv[2]);
  static char message[256], answer[MAX_MESSAGE];
  snprintf(message, sizeof message, "[%d, {\"key\": \"server:%s\", \"addr\": [null, %d]}]", UPDATE_INFO, key, port);
  ask(tracker, message, answer);
  for (;;) hold_session(accept_client(server, tracker, key, port, &seconds), seconds);
}
