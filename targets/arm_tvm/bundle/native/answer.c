#include "answer.h"

#include <math.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bundle.h"
#include "memory.h"
#include "requests.h"
#include "rungs.h"
#include "sizes.h"
#include "usage.h"

enum { LOOK_MS = 250, MOST_CRASHES = 2 };
static const double LOOK_US = LOOK_MS * 1e3; /* between two looks at memory */
static const double UNLOADED_US = 30e6;      /* that a build which was unloaded for want of memory stays away at least */
static const double HUNG_TIMES = 20, LEAST_HUNG_US = 2e6; /* a run that takes longer than both hangs */
static const double DRAIN_US = 30e6;                      /* that requests have to be answered after SIGTERM */
static const long long LEAST_FREE = 32LL << 20; /* bytes: below it memory is short; an inference and the kernel need some */

static const Signature *signature;
static const Service *service;
static Rung rungs[MAX_RUNGS];
static Ladder ladder;
static Clients clients;
static Client *served; /* whose request is run; NULL where nothing is, or a build is timed */
static int running = -1, is_open, last_status;
static double started_us, looked_us;
static volatile sig_atomic_t is_stopping;

static void on_signal(int number) {
  (void)number;
  is_stopping = 1;
}

/* In a child: closes what is this process's. */
static void forget(void) {
  close_clients(&clients);
  for (int i = 0; i < ladder.count; ++i)
    if (rungs[i].channel >= 0) close(rungs[i].channel);
}

/* Says which build answers from now on, where it is another one than before. */
static void tell_switch(int before, int after, const char *reason) {
  if (before != after && is_open)
    fprintf(stderr, "run: %s answers instead of %s: %s\n", rungs[after].name, rungs[before].name, reason);
}

/* Ends the process of a build and takes it out of the ladder. */
static void lose(int rung, const char *reason, double least_us) {
  int is_asked = rungs[rung].stage == READY && ladder.level == rung;
  last_status = end_rung(&rungs[rung]);
  take_out(&ladder, rung, least_us, now_us());
  fprintf(stderr, "run: %s is unloaded: %s\n", rungs[rung].name, reason);
  int below = cheapest_rung(&ladder);
  if (!is_asked || below < 0) return;
  for (int i = below; i > rung; --i)
    if (ladder.rungs[i].is_usable) below = i;
  ladder.level = below;
  tell_switch(rung, below, reason);
}

/* The process of a build is gone: its request is run on another one, or given up if that ended two. */
static void lose_crashed(int rung) {
  Client *client = running == rung ? served : NULL;
  if (running == rung) running = -1, served = NULL;
  lose(rung, "its process ended", 0);
  if (!client) return;
  client->stage = WAITING;
  if (++client->crashes >= MOST_CRASHES)
    answer_reason(client, FAILED, now_us(), "%d builds ended while they ran this request", client->crashes);
}

static long long taken_bytes(void) {
  long long taken = process_bytes(getpid());
  for (int i = 0; i < ladder.count; ++i) {
    if (rungs[i].stage == ABSENT) continue;
    rungs[i].resident_bytes = process_bytes(rungs[i].pid);
    taken += rungs[i].resident_bytes;
  }
  return taken;
}

/* Where memory is short: unloads the build that takes most of it, but never the cheapest of those that are there. */
static void look_at_memory(double now) {
  if (now - looked_us < LOOK_US) return;
  looked_us = now;
  long long left = free_bytes(), taken = taken_bytes();
  int is_over = service->memory_bytes && taken > service->memory_bytes, last = ladder.count - 1, costliest = -1;
  if (!is_over && left >= LEAST_FREE) return;
  while (last > 0 && rungs[last].stage == ABSENT) --last;
  for (int i = 0; i < last; ++i)
    if (rungs[i].stage != ABSENT && (costliest < 0 || rungs[i].resident_bytes > rungs[costliest].resident_bytes)) costliest = i;
  if (costliest < 0) return;
  char reason[128];
  snprintf(reason, sizeof reason, "memory: %lld MiB taken, %lld MiB free", taken >> 20, left >> 20);
  lose(costliest, reason, UNLOADED_US);
}

/* Whether a build can be loaded beside those that are there; says so where it cannot. */
static int has_room(const Rung *rung) {
  if (cheapest_rung(&ladder) < 0) return 1;
  Places places = find_places(rung->folder);
  long long needed = payload_bytes(places.weights, places.model), left = free_bytes() - 2 * LEAST_FREE;
  if (rung->resident_bytes > needed) needed = rung->resident_bytes;
  long long allowed = service->memory_bytes ? service->memory_bytes - taken_bytes() : left;
  if (allowed < left) left = allowed;
  if (needed > left) fprintf(stderr, "run: %s is not loaded: it takes %lld MiB of memory and may take %lld\n", rung->name,
                             needed >> 20, left > 0 ? left >> 20 : 0);
  return needed <= left;
}

/* Starts the builds that are due, one after another, the cheapest first: something answers soon. */
static void start_due(double now) {
  for (int i = 0; i < ladder.count; ++i)
    if (rungs[i].stage == LOADING || rungs[i].stage == TIMING) return;
  for (int i = ladder.count - 1; i >= 0; --i) {
    if (rungs[i].stage != ABSENT || ladder.rungs[i].retry_us > now) continue;
    if (has_room(&rungs[i])) {
      start_rung(&rungs[i], signature, forget);
      return;
    }
    ladder.rungs[i].retry_us = now + UNLOADED_US;
  }
}

/* A size, in the smallest ones that the bundle takes: builds are timed by that one. */
static double units_of(const Client *client) {
  return client ? (double)client->extent / (double)signature->sizes.least : 1;
}

static int ask(int rung, double now) {
  running = rung;
  started_us = now;
  if (ask_run(&rungs[rung], served ? served->extent : signature->sizes.least)) return 1;
  lose_crashed(rung);
  return 0;
}

/* A timed run is over: the builds that are measured run alone, as they do when they answer. */
static void note_timing(int rung, double took_us) {
  Rung *timed = &rungs[rung];
  if (timed->best_us == 0 || took_us < timed->best_us) timed->best_us = took_us;
  if (--timed->timings > 0) return;
  timed->stage = READY;
  put_back(&ladder, rung, timed->best_us);
  fprintf(stderr, "run: %s is loaded: a run takes %.1f ms\n", timed->name, timed->best_us / 1e3);
  if (is_open) return;
  is_open = 1;
  ladder.level = rung;
  printf("serving on %s\n", service->socket);
  fflush(stdout);
}

static void note_run(int rung, double now) {
  observe_run(&ladder, rung, (now - started_us) / units_of(served), now);
  answer_outputs(&clients, served, rung, rungs[rung].memory, started_us, now);
  served = NULL;
}

/* A build says something, or its process is gone. */
static void hear(int rung) {
  double now = now_us();
  RungStage stage = rungs[rung].stage;
  if (!take_report(&rungs[rung])) {
    lose_crashed(rung);
    return;
  }
  if (stage == LOADING) {
    rungs[rung].stage = TIMING;
    return;
  }
  running = -1;
  if (stage == TIMING)
    note_timing(rung, now - started_us);
  else
    note_run(rung, now);
}

static void stop_hung(double now) {
  if (running < 0) return;
  double most_us = HUNG_TIMES * units_of(served) * predict_us(&ladder, running, now);
  if (now - started_us <= (most_us > LEAST_HUNG_US ? most_us : LEAST_HUNG_US)) return;
  if (rungs[running].stage == TIMING) return; /* nobody knows yet what it takes */
  fprintf(stderr, "run: %s hangs\n", rungs[running].name);
  lose_crashed(running);
}

static int is_loading(void) {
  for (int i = 0; i < ladder.count; ++i)
    if (rungs[i].stage == LOADING || rungs[i].stage == TIMING) return 1;
  return 0;
}

/* Answers those that cannot be in time any more. Returns the request whose deadline is first, of those that came first. */
static Client *next_client(Head *head, double now) {
  Client *next = NULL;
  head->waiting = 0;
  for (int i = 0; i < MAX_CLIENTS; ++i) {
    Client *client = &clients.all[i];
    if (client->stage != WAITING) continue;
    if (cheapest_rung(&ladder) < 0 && !is_loading()) {
      answer_reason(client, FAILED, now, "no build is loaded");
    } else if (is_too_late(&ladder, client->deadline_us, units_of(client), now)) {
      answer_reason(client, LATE, now, "it would be late: %.1f ms are over and a run takes %.1f ms", (now - client->arrival_us) / 1e3,
                    cheapest_rung(&ladder) < 0 ? 0 : units_of(client) * predict_us(&ladder, cheapest_rung(&ladder), now) / 1e3);
    } else {
      ++head->waiting;
      if (!next || client->deadline_us < next->deadline_us ||
          (client->deadline_us == next->deadline_us && client->arrival_us < next->arrival_us))
        next = client;
    }
  }
  if (next) head->arrival_us = next->arrival_us, head->deadline_us = next->deadline_us, head->size = units_of(next);
  return next;
}

/* Begins the next run, where nothing runs: of a build that is to be timed, or of a request. */
static void dispatch(void) {
  Head head;
  double now = now_us();
  if (running >= 0) return;
  for (int i = 0; i < ladder.count; ++i)
    if (rungs[i].stage == TIMING) {
      ask(i, now);
      return;
    }
  Client *client = next_client(&head, now);
  int before = ladder.level, rung = client ? choose_rung(&ladder, &head, now) : -1;
  if (rung < 0) return;
  tell_switch(before, rung, rung > before ? "load" : "recovered");
  for (int i = 0; i < signature->num_inputs; ++i)
    memcpy(rungs[rung].memory + tensor_offset(signature, i), request_input(&clients, client, i),
           spec_at(&signature->sizes, &signature->inputs[i], client->extent).bytes);
  served = client;
  client->stage = RUNNING;
  ask(rung, now);
}

/* Ends where no build could be loaded at all, with the exit status of the last. */
static void check_start(void) {
  if (is_open || is_loading()) return;
  for (int i = 0; i < ladder.count; ++i)
    if (ladder.rungs[i].failures == 0) return;
  unlink(service->socket);
  fail(WIFEXITED(last_status) && WEXITSTATUS(last_status) ? WEXITSTATUS(last_status) : EXIT_RUNTIME, "no build can be loaded");
}

/* Waits for whatever comes next: a client, a build, or the time to look around. */
static void wait_and_attend(void) {
  struct pollfd polled[MAX_CLIENTS + 1 + MAX_RUNGS];
  fill_polled(&clients, polled, is_stopping || !is_open);
  for (int i = 0; i < ladder.count; ++i)
    polled[MAX_CLIENTS + 1 + i] = (struct pollfd){.fd = rungs[i].channel, .events = POLLIN};
  if (poll(polled, (nfds_t)(MAX_CLIENTS + 1 + ladder.count), LOOK_MS) < 0) return;
  for (int i = 0; i < ladder.count; ++i)
    if (polled[MAX_CLIENTS + 1 + i].revents && rungs[i].channel >= 0) hear(i);
  attend(&clients, polled, service->deadline_us, now_us());
}

static void prepare(const Service *asked, const Signature *own) {
  service = asked, signature = own;
  init_ladder(&ladder, service->num_folders);
  for (int i = 0; i < ladder.count; ++i) {
    rungs[i] = (Rung){.folder = service->folders[i], .name = service->folders[i], .channel = -1};
    if (!rungs[i].name) rungs[i].name = "the model";
    check_rung(&rungs[i], signature);
  }
  struct sigaction stop = {.sa_handler = on_signal};
  sigaction(SIGTERM, &stop, NULL);
  sigaction(SIGINT, &stop, NULL);
  listen_at(&clients, service->socket, signature);
}

void answer_requests(const Service *asked, const Signature *own) {
  prepare(asked, own);
  double stopping_us = INFINITY;
  while (!is_stopping || (is_anybody_served(&clients) && now_us() < stopping_us + DRAIN_US)) {
    double now = now_us();
    if (is_stopping && now < stopping_us) stopping_us = now;
    stop_hung(now);
    if (running < 0) look_at_memory(now);
    if (!is_stopping) start_due(now);
    check_start();
    dispatch();
    wait_and_attend();
  }
  unlink(service->socket);
  for (int i = 0; i < ladder.count; ++i) end_rung(&rungs[i]);
}
