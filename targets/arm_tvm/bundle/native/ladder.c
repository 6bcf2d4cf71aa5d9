#include "ladder.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "usage.h"

/* The same figures as in serving/ladder.py, where each is explained. */
static const double DWELL_US = 0.15e6, CLIMB_EVERY_US = 2.5e6, MOST_CLIMBS = 6, FRESH_US = 10e6;
static const double FIRST_RETRY_US = 0.5e6, LAST_RETRY_US = 60e6, FORGIVEN_US = 300e6;
static const double SPARE = 0.8; /* part of its time in which everybody who waits should be answered */
static const double QUANTILE = 0.75; /* of so few runs a higher one is the slowest, and one hiccup would speak for all */
enum { LEAST_RUNS = 3, MOST_DOUBLINGS = 10 };

static double higher(double a, double b) { return a > b ? a : b; }
static double lower(double a, double b) { return a < b ? a : b; }

void init_ladder(Ladder *ladder, int count) {
  memset(ladder, 0, sizeof *ladder);
  ladder->count = count;
  ladder->level = count - 1;
  ladder->climbs = MOST_CLIMBS;
  for (int i = 0; i < count; ++i) {
    ladder->rungs[i].needed_us = ladder->rungs[i].failed_us = -INFINITY;
    ladder->rungs[i].retry_us = -INFINITY;
  }
}

int cheapest_rung(const Ladder *ladder) {
  int place = ladder->count - 1;
  while (place >= 0 && !ladder->rungs[place].is_usable) --place;
  return place;
}

static void add(Window *window, double ratio, double now_us) {
  int place = window->count++ % WINDOW;
  window->ratios[place] = ratio;
  window->at_us[place] = now_us;
}

/* A quantile of the runs that still say something of the machine; 0 where there are too few. */
static double recent(const Window *window, double now_us) {
  double fresh[WINDOW];
  int count = 0;
  for (int i = 0; i < WINDOW && i < window->count; ++i)
    if (now_us - window->at_us[i] <= FRESH_US) fresh[count++] = window->ratios[i];
  if (count < LEAST_RUNS) return 0;
  qsort(fresh, (size_t)count, sizeof *fresh, by_value);
  return fresh[(int)(QUANTILE * count)];
}

double predict_us(const Ladder *ladder, int rung, double now_us) {
  const RungState *state = &ladder->rungs[rung];
  double scale = recent(&state->window, now_us);
  if (scale == 0) scale = recent(&ladder->machine, now_us);
  return state->base_us * (scale == 0 ? 1 : scale);
}

int is_too_late(const Ladder *ladder, double deadline_us, double size, double now_us) {
  int cheapest = cheapest_rung(ladder);
  /* at its best: or nothing would run any more, and a prediction that slow moments made would never be corrected */
  double run_us = cheapest < 0 ? 0 : lower(ladder->rungs[cheapest].base_us, predict_us(ladder, cheapest, now_us));
  return now_us + size * run_us > deadline_us;
}

static int is_in_time(const Ladder *ladder, int rung, const Head *head, double now_us) {
  double run_us = head->size * predict_us(ladder, rung, now_us);
  return now_us + run_us <= head->deadline_us && head->waiting * run_us <= SPARE * (head->deadline_us - head->arrival_us);
}

/* Takes one climb from the account, if there is one in it. */
static int may_climb(Ladder *ladder, double now_us) {
  ladder->climbs = lower(MOST_CLIMBS, ladder->climbs + (now_us - ladder->counted_us) / CLIMB_EVERY_US);
  ladder->counted_us = now_us;
  if (ladder->climbs < 1) return 0;
  ladder->climbs -= 1;
  return 1;
}

int choose_rung(Ladder *ladder, const Head *head, double now_us) {
  int cheapest = cheapest_rung(ladder), wanted = cheapest;
  if (cheapest < 0) return -1;
  for (int i = cheapest - 1; i >= 0; --i)
    if (ladder->rungs[i].is_usable && is_in_time(ladder, i, head, now_us)) wanted = i;
  ladder->rungs[wanted].needed_us = now_us;
  for (int i = wanted + 1; i <= cheapest; ++i)
    if (ladder->rungs[i].is_usable && now_us - ladder->rungs[i].needed_us <= DWELL_US) wanted = i;
  if (wanted > ladder->level || (wanted < ladder->level && may_climb(ladder, now_us))) ladder->level = wanted;
  /* the one that is dwelt on may be out meanwhile, or slower than the one above it */
  while (ladder->level < cheapest &&
         (!ladder->rungs[ladder->level].is_usable || !is_in_time(ladder, ladder->level, head, now_us)))
    ++ladder->level;
  if (ladder->level > cheapest) ladder->level = cheapest;
  return ladder->level;
}

void observe_run(Ladder *ladder, int rung, double took_us, double now_us) {
  double ratio = took_us / higher(ladder->rungs[rung].base_us, 1);
  add(&ladder->rungs[rung].window, ratio, now_us);
  add(&ladder->machine, ratio, now_us);
}

void take_out(Ladder *ladder, int rung, double least_us, double now_us) {
  RungState *state = &ladder->rungs[rung];
  state->failures = now_us - state->failed_us > FORGIVEN_US ? 1 : state->failures + 1;
  state->failed_us = now_us;
  int doublings = state->failures - 2 < MOST_DOUBLINGS ? state->failures - 2 : MOST_DOUBLINGS;
  double wait_us = state->failures > 1 ? lower(LAST_RETRY_US, FIRST_RETRY_US * (1 << doublings)) : 0;
  state->retry_us = now_us + higher(wait_us, least_us);
  state->is_usable = 0;
}

void put_back(Ladder *ladder, int rung, double base_us) {
  RungState *state = &ladder->rungs[rung];
  state->is_usable = 1;
  state->base_us = base_us;
  memset(&state->window, 0, sizeof state->window);
}
