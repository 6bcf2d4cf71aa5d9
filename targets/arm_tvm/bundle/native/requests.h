/* Programs of the same machine that ask for inferences, over a Unix socket. All numbers are little-endian.
 *
 *   request   u32 magic, u32 time in microseconds that it has (0: as --deadline-ms says), then per input u64 bytes, data
 *   answer    u32 magic, u32 status, u32 build (0: the most accurate), u32 microseconds waited, u32 of the run,
 *             then with status 0 per output u64 bytes, data; with any other u64 bytes, a text that says why
 *
 * Lengths must be those of payload/io.txt, of all inputs at one size where they depend on it; outputs are of that size. A
 * connection may ask again when it was answered.
 */
#ifndef FLEETC_REQUESTS_H
#define FLEETC_REQUESTS_H

#include <poll.h>
#include <stdint.h>

#include "tensor.h"

enum { MAGIC = 0x31434C46 /* "FLC1" */, MAX_CLIENTS = 32 };

typedef enum { DONE = 0, LATE = 1, MALFORMED = 2, FAILED = 3 } Status;

typedef enum { FREE, READING, WAITING, RUNNING, WRITING } ClientStage;

typedef struct {
  ClientStage stage;
  int fd;
  int is_last; /* closed when its answer is written */
  int crashes; /* builds that ended while they ran this request */
  char *buffer; /* the request, later the answer; none between two */
  int64_t extent; /* the size that its inputs have; 0 until one that depends on it is read */
  size_t done, size;
  double since_us; /* when its last bytes came or went */
  double arrival_us, deadline_us;
} Client;

typedef struct {
  Client all[MAX_CLIENTS];
  const Signature *signature;
  const char *path;
  int listener;
} Clients;

/* Listens at a path that only this user may use; exits where that cannot be, or somebody answers there already. */
void listen_at(Clients *clients, const char *path, const Signature *signature);

/* What to wait for: of the listener, then of every client: MAX_CLIENTS + 1 places. Nobody is let in where `is_closing`. */
void fill_polled(const Clients *clients, struct pollfd *polled, int is_closing);

/* Lets in who came, and reads and writes what can be. `default_us` is the time of a request that says nothing. */
void attend(Clients *clients, const struct pollfd *polled, double default_us, double now_us);

/* Bytes of input `index` of a request that is read whole. */
const char *request_input(const Clients *clients, const Client *client, int index);

/* Answers with outputs, which stand where `tensor_offset` says in `memory`. */
void answer_outputs(Clients *clients, Client *client, int rung, const char *memory, double started_us, double now_us);

/* Answers with a reason, a printf format. */
void answer_reason(Client *client, Status status, double now_us, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* Whether anybody still waits, runs or is written to. */
int is_anybody_served(const Clients *clients);

/* Closes every socket of this process, and only in it. */
void close_clients(Clients *clients);

#endif
