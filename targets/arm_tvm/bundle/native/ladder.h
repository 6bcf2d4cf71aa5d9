/* Which of several builds of one model answers: the most accurate that is in time.
 *
 * Everything here is a function of the time it is given, in microseconds. A build is stepped down from at once, and
 * climbed back to only after a dwell time in which nothing cheaper was needed. serving/ladder.py does the same, with
 * batches beside it, where Python is.
 */
#ifndef FLEETC_LADDER_H
#define FLEETC_LADDER_H

enum { MAX_RUNGS = 8, WINDOW = 16 };

typedef struct {
  double ratios[WINDOW], at_us[WINDOW]; /* what the last runs took over what was predicted at first, and when they were */
  int count;
} Window;

typedef struct {
  int is_usable;
  int failures;     /* in a row */
  double failed_us; /* when it failed last */
  double retry_us;  /* when it is tried again, where it is not usable */
  double needed_us; /* when it was last the most accurate build that was in time */
  double base_us;   /* what a run took when it was loaded */
  Window window;
} RungState;

typedef struct {
  RungState rungs[MAX_RUNGS]; /* the most accurate first */
  int count;
  int level;      /* the build in use */
  Window machine; /* runs of all builds: a throttled machine slows them all */
  double climbs;  /* that may still be made, and when they were counted */
  double counted_us;
} Ladder;

typedef struct {
  double arrival_us, deadline_us; /* of the request that is next; the deadline is infinite where it has none */
  int waiting;                    /* requests, this one included */
  double size;                    /* of the request, in units of what a run is timed by */
} Head;

/* All builds are out, and due at once. */
void init_ladder(Ladder *ladder, int count);

/* Place of the cheapest build that may be used; -1 where there is none. */
int cheapest_rung(const Ladder *ladder);

/* What a run of the smallest size on a build is predicted to take; one of another size takes as many times more. */
double predict_us(const Ladder *ladder, int rung, double now_us);

/* Whether a request of a size cannot be in time any more, even alone on the cheapest build at its best. */
int is_too_late(const Ladder *ladder, double deadline_us, double size, double now_us);

/* The build to run the next request on, which becomes the one in use; -1 where there is none. */
int choose_rung(Ladder *ladder, const Head *head, double now_us);

/* Notes what a run took, divided by its size. */
void observe_run(Ladder *ladder, int rung, double took_us, double now_us);

/* No longer uses a build. It is due again at once the first time, then after a wait that doubles; after `least_us` at
 * the earliest. */
void take_out(Ladder *ladder, int rung, double least_us, double now_us);

/* Uses a build again; the ladder climbs to it as to any other. */
void put_back(Ladder *ladder, int rung, double base_us);

#endif
