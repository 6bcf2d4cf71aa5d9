#include "requests.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "rungs.h"
#include "sizes.h"

enum { BACKLOG = 128, MAX_TEXT = 256, REQUEST_HEAD = 8, ANSWER_HEAD = 20, LENGTH = 8, MOST_DISCARDED = 1 << 24 };
static const double STALLED_US = 30e6; /* who sends or takes nothing for so long in the middle is let go */

static uint64_t read_u64(const char *at) {
  uint64_t value;
  memcpy(&value, at, sizeof value);
  return value;
}

static uint32_t read_u32(const char *at) {
  uint32_t value;
  memcpy(&value, at, sizeof value);
  return value;
}

static char *put_u32(char *at, double value) {
  uint32_t whole = value >= UINT32_MAX ? UINT32_MAX : value <= 0 ? 0 : (uint32_t)value;
  memcpy(at, &whole, sizeof whole);
  return at + sizeof whole;
}

static char *put_block(char *at, const void *data, uint64_t bytes) {
  memcpy(at, &bytes, sizeof bytes);
  memcpy(at + LENGTH, data, bytes);
  return at + LENGTH + bytes;
}

static size_t bytes_at(const Signature *signature, const Spec *spec, int64_t extent) {
  return spec_at(&signature->sizes, spec, extent).bytes;
}

/* Bytes of a whole request or answer of a size up to tensor `count`. */
static size_t framed(size_t head, const Signature *signature, const Spec *specs, int count, int64_t extent) {
  for (int i = 0; i < count; ++i) head += LENGTH + bytes_at(signature, &specs[i], extent);
  return head;
}

/* Whether a server answers at the path; a socket that is left of one which was killed is nobody's. */
static int is_answered(const struct sockaddr_un *place) {
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  int answers = fd >= 0 && connect(fd, (const struct sockaddr *)place, sizeof *place) == 0;
  if (fd >= 0) close(fd);
  return answers;
}

void listen_at(Clients *clients, const char *path, const Signature *signature) {
  struct sockaddr_un place = {.sun_family = AF_UNIX};
  struct stat facts;
  if (!*path || strlen(path) >= sizeof place.sun_path)
    fail(EXIT_USAGE, "--serve: the name of a socket has 1 to %zu characters", sizeof place.sun_path - 1);
  strcpy(place.sun_path, path);
  if (lstat(path, &facts) == 0) {
    if (!S_ISSOCK(facts.st_mode)) fail(EXIT_USAGE, "--serve: %s is there and no socket", path);
    if (is_answered(&place)) fail(EXIT_USAGE, "--serve: another program answers at %s", path);
    unlink(path);
  }
  mode_t before = umask(0177);
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0 || bind(fd, (struct sockaddr *)&place, sizeof place) != 0 || listen(fd, BACKLOG) != 0)
    fail(EXIT_USAGE, "--serve: cannot listen at %s: %s", path, strerror(errno));
  umask(before);
  *clients = (Clients){.signature = signature, .path = path, .listener = fd};
}

static void let_go(Client *client) {
  close(client->fd);
  free(client->buffer);
  *client = (Client){.stage = FREE};
}

static Client *free_place(Clients *clients) {
  for (int i = 0; i < MAX_CLIENTS; ++i)
    if (clients->all[i].stage == FREE) return &clients->all[i];
  return NULL;
}

void fill_polled(const Clients *clients, struct pollfd *polled, int is_closing) {
  int has_room = 0;
  for (int i = 0; i < MAX_CLIENTS; ++i) {
    const Client *client = &clients->all[i];
    int wants = client->stage == READING ? POLLIN : client->stage == WRITING ? POLLOUT : 0;
    /* who waits for a run is not looked at: a client that is gone would wake this loop all the time */
    polled[i + 1] = (struct pollfd){.fd = wants ? client->fd : -1, .events = (short)wants};
    has_room |= client->stage == FREE;
  }
  polled[0] = (struct pollfd){.fd = has_room && !is_closing ? clients->listener : -1, .events = POLLIN};
}

static void let_in(Clients *clients, double now_us) {
  for (Client *client; (client = free_place(clients));) {
    int fd = accept4(clients->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) return;
    *client = (Client){.stage = READING, .fd = fd, .since_us = now_us};
  }
}

/* Takes the size of a request from the bytes of an input; answers and gives 0 where it is none that the bundle takes. */
static int take_extent(const Signature *signature, Client *client, int index, uint64_t bytes, double now_us) {
  const Spec *spec = &signature->inputs[index];
  int64_t extent = client->extent;
  char why[MAX_TEXT];
  if (open_axis(spec) >= 0 && !extent) extent = size_of_bytes(&signature->sizes, spec, bytes);
  if (open_axis(spec) >= 0 && extent && !is_taken(&signature->sizes, extent, why, sizeof why))
    return answer_reason(client, MALFORMED, now_us, "input %d: %s", index + 1, why), 0;
  size_t wanted = bytes_at(signature, spec, extent ? extent : signature->sizes.least);
  if (bytes != wanted)
    return answer_reason(client, MALFORMED, now_us, "input %d has %llu bytes, '%.100s' takes %zu%s", index + 1,
                         (unsigned long long)bytes, spec->name, wanted,
                         open_axis(spec) >= 0 && !extent ? " at its smallest size" : ""), 0;
  if (open_axis(spec) >= 0) client->extent = extent;
  return 1;
}

/* Refuses a request as soon as a number in it is wrong: what follows it cannot be read. Sets how far it is known. */
static int is_well_formed(Clients *clients, Client *client, double now_us) {
  const Signature *signature = clients->signature;
  size_t at = REQUEST_HEAD;
  if (client->done >= sizeof(uint32_t) && read_u32(client->buffer) != MAGIC)
    return answer_reason(client, MALFORMED, now_us, "a request begins with FLC1"), 0;
  for (int i = 0; i < signature->num_inputs; ++i) {
    client->size = at + LENGTH; /* nothing behind the length is read before it is known */
    if (client->done < client->size) return 1;
    uint64_t bytes = read_u64(client->buffer + at);
    if (!take_extent(signature, client, i, bytes, now_us)) return 0;
    client->size = at += LENGTH + bytes;
  }
  return 1;
}

/* Makes room for a request of any size; 0 where there is no memory for it. */
static int begin_request(const Clients *clients, Client *client) {
  const Signature *signature = clients->signature;
  size_t room = framed(REQUEST_HEAD, signature, signature->inputs, signature->num_inputs, signature->sizes.most);
  client->size = signature->num_inputs ? REQUEST_HEAD + LENGTH : REQUEST_HEAD;
  client->extent = 0;
  client->done = 0;
  client->crashes = 0;
  client->buffer = malloc(room);
  return client->buffer != NULL;
}

/* Reads what is there of a request; 0 where more must come, or the client is gone or answered. */
static int read_whole(Clients *clients, Client *client, double now_us) {
  int has_room = client->buffer || begin_request(clients, client);
  do {
    ssize_t count = has_room ? recv(client->fd, client->buffer + client->done, client->size - client->done, 0) : 0;
    if (count < 0 && (errno == EAGAIN || errno == EINTR)) return 0;
    if (count <= 0) return let_go(client), 0;
    client->done += (size_t)count;
    client->since_us = now_us;
    if (!is_well_formed(clients, client, now_us)) return 0;
  } while (client->done < client->size);
  return 1;
}

static void read_request(Clients *clients, Client *client, double default_us, double now_us) {
  if (!read_whole(clients, client, now_us)) return;
  if (!client->extent) client->extent = clients->signature->sizes.least;
  uint32_t own_us = read_u32(client->buffer + sizeof(uint32_t));
  client->stage = WAITING;
  client->arrival_us = now_us;
  client->deadline_us = now_us + (own_us ? own_us : default_us);
}

static void write_answer(Client *client, double now_us) {
  ssize_t count = send(client->fd, client->buffer + client->done, client->size - client->done, MSG_NOSIGNAL);
  if (count < 0 && (errno == EAGAIN || errno == EINTR)) return;
  client->done += count > 0 ? (size_t)count : 0;
  client->since_us = now_us;
  if (count >= 0 && client->done < client->size) return;
  if (count < 0 || client->is_last) {
    let_go(client);
    return;
  }
  free(client->buffer);
  client->buffer = NULL;
  client->stage = READING;
}

void attend(Clients *clients, const struct pollfd *polled, double default_us, double now_us) {
  for (int i = 0; i < MAX_CLIENTS; ++i) {
    Client *client = &clients->all[i];
    int is_ready = polled[i + 1].fd >= 0 && polled[i + 1].revents != 0;
    if (client->stage == READING && is_ready)
      read_request(clients, client, default_us, now_us);
    else if (client->stage == WRITING && is_ready)
      write_answer(client, now_us);
    else if ((client->stage == READING || client->stage == WRITING) && client->buffer &&
             now_us - client->since_us > STALLED_US)
      let_go(client);
  }
  if (polled[0].fd >= 0 && polled[0].revents) let_in(clients, now_us);
}

const char *request_input(const Clients *clients, const Client *client, int index) {
  const Signature *signature = clients->signature;
  return client->buffer + framed(REQUEST_HEAD, signature, signature->inputs, index, client->extent) + LENGTH;
}

/* Puts a new buffer in the place of the request's, with the head of an answer in it. Gives where its body begins; NULL
 * where there is no memory for it, and the client is let go. */
static char *begin_answer(Client *client, size_t bytes, Status status, int rung, double waited_us, double run_us) {
  char *buffer = malloc(bytes);
  if (!buffer) return let_go(client), NULL;
  free(client->buffer);
  client->buffer = buffer;
  client->size = bytes;
  client->done = 0;
  client->stage = WRITING;
  return put_u32(put_u32(put_u32(put_u32(put_u32(buffer, MAGIC), status), rung), waited_us), run_us);
}

void answer_outputs(Clients *clients, Client *client, int rung, const char *memory, double started_us, double now_us) {
  const Signature *signature = clients->signature;
  int64_t extent = client->extent;
  size_t bytes = framed(ANSWER_HEAD, signature, signature->outputs, signature->num_outputs, extent);
  char *at = begin_answer(client, bytes, DONE, rung, started_us - client->arrival_us, now_us - started_us);
  if (!at) return;
  for (int i = 0; i < signature->num_outputs; ++i)
    at = put_block(at, memory + tensor_offset(signature, signature->num_inputs + i),
                   bytes_at(signature, &signature->outputs[i], extent));
  client->since_us = now_us;
  write_answer(client, now_us);
}

/* Reads what is there and throws it away: a socket that is closed before all is read takes its answer back. */
static void discard(const Client *client) {
  char bytes[1 << 12];
  for (int left = MOST_DISCARDED; left > 0 && recv(client->fd, bytes, sizeof bytes, 0) > 0;) left -= (int)sizeof bytes;
}

void answer_reason(Client *client, Status status, double now_us, const char *format, ...) {
  char text[MAX_TEXT];
  va_list values;
  va_start(values, format);
  vsnprintf(text, sizeof text, format, values);
  va_end(values);
  if (status == MALFORMED) discard(client);
  double waited_us = status == MALFORMED ? 0 : now_us - client->arrival_us;
  char *at = begin_answer(client, ANSWER_HEAD + LENGTH + strlen(text), status, 0, waited_us, 0);
  if (!at) return;
  put_block(at, text, strlen(text));
  client->is_last = status == MALFORMED;
  client->since_us = now_us;
  write_answer(client, now_us);
}

int is_anybody_served(const Clients *clients) {
  for (int i = 0; i < MAX_CLIENTS; ++i)
    if (clients->all[i].stage >= WAITING) return 1;
  return 0;
}

void close_clients(Clients *clients) {
  for (int i = 0; i < MAX_CLIENTS; ++i)
    if (clients->all[i].stage != FREE) close(clients->all[i].fd);
  close(clients->listener);
}
