/* The claim protocol (protocol.md) as built, for SPIN: `make model-check` runs it in many configurations.
 *
 * Each step below carries the name of the function that takes it. One step of the model is what the code does between two
 * awaits: it decides, or makes one write of one GPU object, or the engine, a client, time or trouble does something.
 *
 * A decision rests on what was read then and is written later, when others may have written; what the write `test`s is
 * kept as one bit a GPU ("somebody has changed it since"). The API server's rules (the GPU's CRD) guard every write.
 * Times are abstract: maxWaitTime, minRuntime and drainTimeout end by themselves, at any moment. Who was used least recently is
 * any of the candidates. Requests, crashes and the rest of the trouble are finite (budgets below), so that a protocol without
 * livelock has no cycle at all, and every run ends in a state that `Judge` looks at. Only with RENEWS do requests never end; then
 * the property is the formula `fed`, under weak fairness.
 *
 * A configuration is a set of -D: see scripts/model_check.py. -DBUG_... takes one rule away; each must be caught.
 */

#ifndef NP
#define NP 3   /* pods, 2 to 4 */
#endif
#ifndef NG
#define NG 2   /* GPUs, 1 to 3 */
#endif
#ifndef TOTAL
#define TOTAL 2   /* memory of each GPU, in units */
#endif
/* What one does not say of a pod: GPU set (mask), bytes a wake needs, bytes a boot needs, requests. */
#ifndef GS0
#define GS0 1
#endif
#ifndef GS1
#define GS1 1
#endif
#ifndef GS2
#define GS2 1
#endif
#ifndef GS3
#define GS3 1
#endif
#ifndef NW0
#define NW0 1
#endif
#ifndef NW1
#define NW1 1
#endif
#ifndef NW2
#define NW2 1
#endif
#ifndef NW3
#define NW3 1
#endif
#ifndef NB0
#define NB0 NW0
#endif
#ifndef NB1
#define NB1 NW1
#endif
#ifndef NB2
#define NB2 NW2
#endif
#ifndef NB3
#define NB3 NW3
#endif
#ifndef RQ0
#define RQ0 1
#endif
#ifndef RQ1
#define RQ1 1
#endif
#ifndef RQ2
#define RQ2 1
#endif
#ifndef RQ3
#define RQ3 1
#endif
/* Masks of pods: pinned; absent engine at the start; requests that never end; no yieldAfter; no minRuntime. */
#ifndef POPULAR
#define POPULAR 0
#endif
#ifndef UNBOOTED
#define UNBOOTED 0
#endif
#ifndef ENDLESS
#define ENDLESS 0
#endif
#ifndef KEEPS
#define KEEPS 0
#endif
#ifndef SHORTRUN
#define SHORTRUN 0
#endif
#ifndef IDLES
#define IDLES 0   /* goes to sleep by idleTimeout */
#endif
#ifndef POLITE
#define POLITE 0   /* all its requests say X-GreenThread-Preempt: never */
#endif
#ifndef RENEWS
#define RENEWS 0   /* its requests keep coming for ever */
#endif
/* Budgets of trouble. */
#ifndef CRASHES
#define CRASHES 0   /* a sidecar is killed, and starts again */
#endif
#ifndef CRASHWHO
#define CRASHWHO 15   /* whose: of pods that are all alike, one stands for all */
#endif
#ifndef STAYS
#define STAYS 0   /* a killed sidecar stays down */
#endif
#ifndef DEATHS
#define DEATHS 0   /* an engine process ends by itself */
#endif
#ifndef FAILS
#define FAILS 0   /* an engine does not wake, boot or sleep by its deadline */
#endif
#ifndef APIFAULTS
#define APIFAULTS 0   /* a write gets no answer: it was made, or not */
#endif
#ifndef QUITS
#define QUITS 0   /* a waiting client leaves, or is told at its limit */
#endif
#ifndef DELETES
#define DELETES 0   /* a pod is deleted by force: its process may last somewhat longer */
#endif
#ifndef REBORN
#define REBORN 0   /* a new pod of the same name */
#endif
#ifndef CUTS
#define CUTS 0   /* some part (CUTWHO: pods; NP is the agent; NP + 1: all at once) loses the API, for ever or until HEALS */
#endif
#ifndef CUTWHO
#define CUTWHO 63
#endif
#ifndef HEALS
#define HEALS 0
#endif
#ifndef FOREIGN
#define FOREIGN 0   /* another program takes one unit of GPU 0, and gives it back */
#endif

/* Occupants' states. */
#define NONE      0
#define SLEEPING  1
#define WAKING    2
#define CONVERTING 3
#define SERVING   4
#define DEACTIVATING 5

/* Engines. */
#define ABSENT    0
#define E_BOOTING 1
#define E_ASLEEP  2
#define E_WAKING  3
#define E_AWAKE   4
#define E_SLEEPS  5

/* Where a sidecar is. The ones from WANTED to WAITS are woken by events. */
#define WANTED    1    /* Lifecycle._wanted, at the top of its loop */
#define KEEP      2    /* _wanted: _keep_entry(SLEEPING) */
#define ASLEEP    3    /* _wanted: _wait */
#define PENDING   4    /* _acquire, at the top of its loop */
#define CLAIM     5    /* Claims.claim */
#define TURNBACK  6    /* Claims.claim, after a refusal; Claims.turn_back */
#define INTEND    7    /* Claims.intend */
#define WITHDRAW  8    /* Claims.withdraw */
#define WAITS     9    /* _acquire: _wait_until */
#define BRINGUP   10   /* _bring_up: before the engine is told */
#define ENGINE    11   /* _bring_up: the engine wakes or boots */
#define FAILED    12   /* _wake_failed: engine.kill */
#define SERVE     13   /* _serve */
#define LEAVE     14   /* _put_to_sleep: the write that begins it */
#define DRAIN     15   /* _put_to_sleep: _drain */
#define REST      16   /* _put_to_sleep: _rest_engine */
#define RELEASE   17   /* _insist(claims.release) */
#define REPAIR    18   /* _repair */
#define RWITHDRAW 19   /* _repair: it serves on; withdraw */
#define DOWN      20   /* the sidecar was killed */
#define DEAD      21   /* ... and stays down */
#define GONE      22   /* there is no such pod */

/* Why it leaves. */
#define IDLE      1
#define YIELDED   2
#define PREEMPTED 3
#define CRASHED   4
#define BOOTED    5

#define BIT(p) (1 << (p))
#define X(g, p) ((g) * NP + (p))

#if NP == 2
#define SUM(F, g, p)  (F(g,p,0) + F(g,p,1))
#define SUM2(F, g, p) (F(g,p,0) + F(g,p,1))
#define OR(F, g, p)   (F(g,p,0) | F(g,p,1))
#define ANY(F, g, p)  (F(g,p,0) || F(g,p,1))
#define PICK(p, a, b, c, d) ((p) == 0 -> (a) : (b))
#define EACH(F) (F(0) && F(1))
#define MASK(F) (F(0) | (F(1) << 1))
#elif NP == 3
#define SUM(F, g, p)  (F(g,p,0) + F(g,p,1) + F(g,p,2))
#define SUM2(F, g, p) (F(g,p,0) + F(g,p,1) + F(g,p,2))
#define OR(F, g, p)   (F(g,p,0) | F(g,p,1) | F(g,p,2))
#define ANY(F, g, p)  (F(g,p,0) || F(g,p,1) || F(g,p,2))
#define PICK(p, a, b, c, d) ((p) == 0 -> (a) : ((p) == 1 -> (b) : (c)))
#define EACH(F) (F(0) && F(1) && F(2))
#define MASK(F) (F(0) | (F(1) << 1) | (F(2) << 2))
#else
#define SUM(F, g, p)  (F(g,p,0) + F(g,p,1) + F(g,p,2) + F(g,p,3))
#define SUM2(F, g, p) (F(g,p,0) + F(g,p,1) + F(g,p,2) + F(g,p,3))
#define OR(F, g, p)   (F(g,p,0) | F(g,p,1) | F(g,p,2) | F(g,p,3))
#define ANY(F, g, p)  (F(g,p,0) || F(g,p,1) || F(g,p,2) || F(g,p,3))
#define PICK(p, a, b, c, d) ((p) == 0 -> (a) : ((p) == 1 -> (b) : ((p) == 2 -> (c) : (d))))
#define EACH(F) (F(0) && F(1) && F(2) && F(3))
#define MASK(F) (F(0) | (F(1) << 1) | (F(2) << 2) | (F(3) << 3))
#endif
#if NG == 1
#define ALLG(F, p) (F(0,p))
#define ANYG(F, p) (F(0,p))
#define ORG(F, p)  (F(0,p))
#elif NG == 2
#define ALLG(F, p) (F(0,p) && F(1,p))
#define ANYG(F, p) (F(0,p) || F(1,p))
#define ORG(F, p)  (F(0,p) | F(1,p))
#else
#define ALLG(F, p) (F(0,p) && F(1,p) && F(2,p))
#define ANYG(F, p) (F(0,p) || F(1,p) || F(2,p))
#define ORG(F, p)  (F(0,p) | F(1,p) | F(2,p))
#endif

#define GSET(p)   PICK(p, GS0, GS1, GS2, GS3)
#define NEEDW(p)  PICK(p, NW0, NW1, NW2, NW3)
#define NEEDB(p)  PICK(p, NB0, NB1, NB2, NB3)
#define ON(g, p)  ((GSET(p) >> (g)) & 1)
#define FIRST(p)  ((GSET(p) & 1) -> 0 : ((GSET(p) & 2) -> 1 : 2))
#define POP(p)    ((POPULAR >> (p)) & 1)
#ifdef BUG_PINNED_IS_VICTIM
#define SPARED(p) 0
#else
#define SPARED(p) POP(p)
#endif
#ifdef BUG_RUNTIME_IGNORED
#define SAFE(p)   SPARED(p)
#else
#define SAFE(p)   (SPARED(p) || prot[p])
#endif

/* ---- what the API server keeps: the GPU objects ---- */
byte st[NG * NP];    /* occupants: state */
byte rs[NG * NP];    /* occupants: reserved bytes */
byte lock[NG];       /* wakeLock: 1 + holder */
byte it[NG * NP];    /* preemptionIntents: age, 0 is none */
byte rq[NG * NP];    /* preemptionIntents: requested bytes */
byte vic[NG * NP];   /* preemptionIntents: victims, a mask */
byte foreign;        /* of GPU 0 */
#if STAYS > 0
byte dn[NG];         /* occupants: sidecarDown, a mask (left out where no sidecar stays down) */
#define MARKED(g, q) ((dn[g] >> (q)) & 1)
#else
#define MARKED(g, q) 0
#endif

/* ---- what is so: processes, clients, clocks ---- */
byte eng[NP];
bool old[NP];        /* a process of the pod that was deleted still holds its memory */
bool jr[NP];         /* the journal names an operation under way */
bool prot[NP];       /* within its minRuntime */
bool late[NP];       /* its maxWaitTime is over */
bool busy[NP];       /* requests in flight */
byte since[NP];      /* rank of the oldest waiting request, 0: nobody waits */
byte bs[NP];         /* rank of the wish to boot */
byte arr[NP];        /* requests still to come */
byte crashes = CRASHES, stays = STAYS, deaths = DEATHS, fails = FAILS, apif = APIFAULTS, quits = QUITS, deletes = DELETES,
     reborn = REBORN, intrude = FOREIGN, cuts = CUTS, heals = HEALS;
byte cut;            /* mask: who does not reach the API server */

/* ---- what a sidecar remembers; lost in a crash ---- */
byte pc[NP];
byte cg[NP];         /* the GPU that a write under way is at */
bool ready[NP];      /* Wants.boot_ready */
bool died[NP];       /* Lifecycle._died */
bool open[NP];       /* the door */
bool ann[NP];        /* announced */
bool cw[NP];         /* the want that was decided on is a wake's, not a boot's */
byte ca[NP];         /* ... and its age */
byte nv[NP];         /* victims to be named */
byte why[NP];
bool rest[NP];       /* the engine came to rest asleep */
bool tarm[NP];       /* a timer runs until the end of maxWaitTime */
byte armed[NP];      /* a timer runs until the end of these candidates' minRuntime */
byte changed;        /* mask: Lifecycle._changed */
byte sI[NG];         /* mask: lock or intents of this GPU are not what the pod's decision read */
byte sO[NG];         /* mask: ... or the occupants */

/* ---- the agent ---- */
byte ag;             /* 1 + GPU that it has read and will write */
bool agst;           /* that GPU was written since */
byte aggone, agdown; /* masks: what it found out about the pods named there */
#if STAYS > 0
byte agmark;         /* ... and whose sidecars are down, of pods that are there */
#endif

byte nm, rk;         /* scratch within one step, else 0: who is named; a rank */

/* ---- greenthread/fairness.py ---- */
#define F_RES(g, p, q)   rs[X(g, q)]
#define TOT(g)           (TOTAL - ((g) == 0 -> foreign : 0))
#define RES(g)           SUM(F_RES, g, 0)
/* Intent.age: requests, boots (64 + rank), requests that may not preempt (128 + rank); a boot's want is one of its own. */
#define ISPOLITE(p)      (((POLITE >> (p)) & 1) && since[p] && ready[p])
#define AGE(p)           (ISPOLITE(p) -> 128 + since[p] : ((since[p] && !((POLITE >> (p)) & 1)) -> since[p] : 64 + bs[p]))
#define WANT(p)          (since[p] || !ready[p])
#define NEED(p)          (ready[p] -> NEEDW(p) : NEEDB(p))
#define ROOM(g, p)       (TOT(g) - RES(g) + rs[X(g, p)])                       /* _room */
#define F_OLDER(g, p, q) (((q) != (p) && it[X(g, q)] && it[X(g, q)] < AGE(p)) -> rq[X(g, q)] : 0)
#define OLDER(g, p)      SUM(F_OLDER, g, p)                                    /* _older */
#ifdef BUG_LOCK_TAKEN_OVER
#define LOCKED(g, p)     0
#else
#define LOCKED(g, p)     (ready[p] && lock[g] && lock[g] != (p) + 1)
#endif
#define SHORT(g, p)      (ON(g, p) && ROOM(g, p) < NEED(p) + OLDER(g, p))
#define NOFIT(g, p)      (ON(g, p) && (LOCKED(g, p) || ROOM(g, p) < NEED(p) + OLDER(g, p)))
#ifdef BUG_GANG_BLIND
#define FITS(p)          (!NOFIT(FIRST(p), p))
#else
#define FITS(p)          (!ANYG(NOFIT, p))
#endif
#define F_PINNED(g, p, q) (((q) != (p) && POP(q)) -> rs[X(g, q)] : 0)
#define NEVER(g, p)      (ON(g, p) && NEED(p) > TOT(g) - SUM(F_PINNED, g, p))  /* _most_room */
#define F_VIC(g, p, q)   vic[X(g, q)]
#define NAMEDG(g, p)     (ON(g, p) -> OR(F_VIC, g, p) : 0)
#define NAMED(p)         ORG(NAMEDG, p)                                        /* _named */
#define LEAVES(g, q, names) (!MARKED(g, q) && (st[X(g, q)] == DEACTIVATING \
                             || (st[X(g, q)] == SERVING && !SPARED(q) && (((names) >> (q)) & 1))))   /* _leaves */
#define F_COMING(g, p, q) (((q) != (p) && LEAVES(g, q, NAMED(p))) -> rs[X(g, q)] : 0)
#define COMING(g, p)     SUM(F_COMING, g, p)                                   /* coming */
#define F_COMNM(g, p, q) (((q) != (p) && LEAVES(g, q, nm)) -> rs[X(g, q)] : 0)
#define LACK(g, p)       (NEED(p) + OLDER(g, p) - ROOM(g, p) - SUM(F_COMNM, g, p))
#define LACKS(g, p)      (ON(g, p) && LACK(g, p) > 0)
#define F_CAND(g, p, q)  (((q) != (p) && ON(g, p) && st[X(g, q)] == SERVING && !SPARED(q) && !MARKED(g, q) \
                          && !((nm >> (q)) & 1)) -> BIT(q) : 0)
#define CANDG(g, p)      OR(F_CAND, g, p)
#define CAND(p)          ORG(CANDG, p)
#define F_PROT(q)        prot[q]
#ifdef BUG_RUNTIME_IGNORED
#define PROTECTED        0
#else
#define PROTECTED        MASK(F_PROT)
#endif
#define ELIGIBLE(p)      (CAND(p) & ~PROTECTED)                                /* _candidates */
#define GAIN(g, V)       (((V & 1) -> rs[X(g, 0)] : 0) + ((V & 2) -> rs[X(g, 1)] : 0) + GAIN3(g, V) + GAIN4(g, V))
#if NP >= 3
#define GAIN3(g, V)      ((V & 4) -> rs[X(g, 2)] : 0)
#else
#define GAIN3(g, V)      0
#endif
#if NP >= 4
#define GAIN4(g, V)      ((V & 8) -> rs[X(g, 3)] : 0)
#else
#define GAIN4(g, V)      0
#endif
#if NG == 1
#define ENOUGH(p, V)     (!LACKS(0,p) || GAIN(0,V) >= LACK(0,p))
#elif NG == 2
#define ENOUGH(p, V)     ((!LACKS(0,p) || GAIN(0,V) >= LACK(0,p)) && (!LACKS(1,p) || GAIN(1,V) >= LACK(1,p)))
#else
#define ENOUGH(p, V)     ((!LACKS(0,p) || GAIN(0,V) >= LACK(0,p)) && (!LACKS(1,p) || GAIN(1,V) >= LACK(1,p)) \
                          && (!LACKS(2,p) || GAIN(2,V) >= LACK(2,p)))
#endif
/* _victims: some of those eligible that together make room on every GPU, of whom none can be left out. */
#define LESS(p, V, q)    (!((V >> (q)) & 1) || !ENOUGH(p, (V & ~BIT(q))))
#if NP == 2
#define NEEDED(p, V)     (LESS(p,V,0) && LESS(p,V,1))
#elif NP == 3
#define NEEDED(p, V)     (LESS(p,V,0) && LESS(p,V,1) && LESS(p,V,2))
#else
#define NEEDED(p, V)     (LESS(p,V,0) && LESS(p,V,1) && LESS(p,V,2) && LESS(p,V,3))
#endif
#define VICTIMS(p, V)    ((V & ~ELIGIBLE(p)) == 0 && ENOUGH(p, V) && NEEDED(p, V))
/* gives_way: some waiter lacks room on a GPU of p even with what is coming. */
#define F_OLDI(g, pq, i) (((i) != ((pq) % NP) && it[X(g, i)] && it[X(g, i)] < it[X(g, (pq) / NP)]) -> rq[X(g, i)] : 0)
#ifdef BUG_ALL_GIVE_WAY
#define GWCOMING(g, p)   0
#else
#define GWCOMING(g, p)   COMING(g, p)
#endif
#define ASKS(g, q)       (it[X(g, q)] && it[X(g, q)] < 128)   /* Intent.preempts */
#define F_GW(g, p, q)    ((q) != (p) && ASKS(g, q) \
                          && TOT(g) - RES(g) + GWCOMING(g, p) < rq[X(g, q)] + SUM2(F_OLDI, g, ((q) * NP + (p))))
#define GWG(g, p)        (ON(g, p) && rs[X(g, p)] && ANY(F_GW, g, p))
#define GIVESWAY(p)      ANYG(GWG, p)
#define F_VAIN(g, p, q)  ((q) != (p) && ASKS(g, q) \
                          && TOT(g) - RES(g) + COMING(g, p) < rq[X(g, q)] + SUM2(F_OLDI, g, ((q) * NP + (p))))
#define NEEDS(g, p)      (ON(g, p) && rs[X(g, p)] && ANY(F_VAIN, g, p))

/* ---- watches ---- */
#ifdef BUG_EVENTS_LOST
#define F_EV(q)          (pc[q] == ASLEEP || pc[q] == WAITS)
#else
#define F_EV(q)          (pc[q] >= WANTED && pc[q] <= WAITS)
#endif
#define EVENTED          MASK(F_EV)
#define F_CL(q)          (pc[q] == CLAIM)
#define F_LV(q)          (pc[q] == LEAVE && why[q] == YIELDED)
#define F_ON0(q)         (GSET(q) & 1)
#define F_ON1(q)         ((GSET(q) >> 1) & 1)
#define F_ON2(q)         ((GSET(q) >> 2) & 1)
#define USERS(g)         ((g) == 0 -> MASK(F_ON0) : ((g) == 1 -> MASK(F_ON1) : MASK(F_ON2)))

inline poke(p)
{
  changed = changed | (EVENTED & BIT(p))
}
/* Pod p (or nobody, p = NP) has written the occupants of g; noteI: and its lock or intents. */
inline noteO(g, p)
{
  changed = changed | (EVENTED & USERS(g) & ~BIT(p));
  sO[g] = sO[g] | (MASK(F_LV) & USERS(g) & ~BIT(p));
  agst = agst || ag == (g) + 1
}
inline noteI(g, p)
{
  noteO(g, p);
  sI[g] = sI[g] | (MASK(F_CL) & USERS(g) & ~BIT(p))
}

/* ---- what must never be ---- */
#define USE(p)     ((eng[p] == E_BOOTING -> NEEDB(p) : (eng[p] >= E_WAKING -> NEEDW(p) : 0)) + (old[p] -> NEEDW(p) : 0))
#define BARE(g, p) (ON(g, p) && USE(p) > rs[X(g, p)])
#define F_WAKES(g, p, q) ((q) != (p) && ON(g, q) && eng[q] == E_WAKING)
#define TWOWAKE(g, p) (ON(g, p) && ANY(F_WAKES, g, p))
inline covered(p)   /* an engine that holds memory holds a reservation for it, on every GPU */
{
  assert(!ANYG(BARE, p))
}

inline newrank(v)   /* younger than everybody who waits */
{
  d_step {
    rk = 0;
    for (k : 0 .. NP - 1) {
      if :: since[k] > rk -> rk = since[k] :: else fi;
      if :: bs[k] > rk -> rk = bs[k] :: else fi;
      for (j : 0 .. NG - 1) {
        if :: (it[X(j, k)] & 63) > rk -> rk = it[X(j, k)] & 63 :: else fi
      }
    }
    v = rk + 1; rk = 0; k = 0; j = 0
  }
}

#if RENEWS > 0
#define FEWRANKS(q) (since[q] < 15)
inline closeranks()   /* requests without end need ranks without end: those that nobody has are given again */
{
  d_step {
    for (nm : 1 .. 15) {
      rk = 0;
      for (k : 0 .. NP - 1) {
        if :: since[k] == 16 - nm || bs[k] == 16 - nm || (ca[k] & 63) == 16 - nm -> rk = 1 :: else fi;
        for (j : 0 .. NG - 1) {
          if :: (it[X(j, k)] & 63) == 16 - nm -> rk = 1 :: else fi
        }
      };
      if
      :: rk
      :: else ->
         for (k : 0 .. NP - 1) {
           if :: since[k] > 16 - nm -> since[k]-- :: else fi;
           if :: bs[k] > 16 - nm -> bs[k]-- :: else fi;
           if :: (ca[k] & 63) > 16 - nm -> ca[k]-- :: else fi;
           for (j : 0 .. NG - 1) {
             if :: (it[X(j, k)] & 63) > 16 - nm -> it[X(j, k)]-- :: else fi
           }
         }
      fi
    };
    rk = 0; nm = 0; k = 0; j = 0; assert(EACH(FEWRANKS))
  }
}
#endif

#define NEXT(p, g)  (((g) < 1 && NG > 1 && ON(1, p)) -> 1 : (((g) < 2 && NG > 2 && ON(2, p)) -> 2 : NG))
#define LAST(p, g)  (NEXT(p, g) == NG)
#define PREV(p, g)  (((g) > 1 && ON(1, p)) -> 1 : (((g) > 0 && ON(0, p)) -> 0 : NG))
#define HOLDG(g, p) (ON(g, p) && (st[X(g, p)] > SLEEPING || lock[g] == (p) + 1))
#define HOLDS(p)    ANYG(HOLDG, p)
#define NOTSERVING(g, p) (ON(g, p) && st[X(g, p)] != SERVING)
#define LEAVING(g, p) (ON(g, p) && st[X(g, p)] == DEACTIVATING)
#ifndef BUG_HALF_LEFT
#define PUBLISHES(p) (ANYG(NOTSERVING, p) && !ANYG(LEAVING, p))
#else
#define PUBLISHES(p) ANYG(CLAIMED, p)
#endif
#define CLAIMED(g, p) (ON(g, p) && st[X(g, p)] != SERVING && st[X(g, p)] != DEACTIVATING)
#ifdef BUG_HEIR_DOES_NOT_WAIT
#define SETTLES(p) true
#else
#define SETTLES(p) (eng[p] != ABSENT || !old[p])   /* leftovers_gone */
#endif
#define MYIT(g, p)  (ON(g, p) && it[X(g, p)])
#define API(p)      (!((cut >> (p)) & 1))
#define UP(p)       (pc[p] < DOWN)

#define F_USE(g, p, q) (ON(g, q) -> USE(q) : 0)
#define OVER(g, p)   (SUM(F_USE, g, p) > TOTAL)

/* The API server's rules for a claim (CRD), and what the patch tests. */
#ifdef BUG_NO_SUM_RULE
#define SUMRULE(g, p, n) 1
#else
#define SUMRULE(g, p, n) (RES(g) - rs[X(g, p)] + (n) <= TOT(g) || (n) <= rs[X(g, p)])
#endif
#define CNEED(p)    (cw[p] -> NEEDW(p) : NEEDB(p))
#define CSTATE(p)   (cw[p] -> WAKING : CONVERTING)
#define MAYCLAIM(g, p) (SUMRULE(g, p, CNEED(p)) \
                     && LOCKRULE(g, p) \
                     && (st[X(g, p)] <= SLEEPING || st[X(g, p)] == CSTATE(p)) \
                     && (CNEED(p) <= rs[X(g, p)] || st[X(g, p)] <= SLEEPING) \
                     && (st[X(g, p)] != WAKING || lock[g] == (p) + 1))
#ifdef BUG_LOCK_TAKEN_OVER
#define LOCKRULE(g, p) 1
#else
#define LOCKRULE(g, p) (!cw[p] || !lock[g] || lock[g] == (p) + 1)
#endif

/* Claims._claim_patch: each write tests the lock and the intents that its decision read. On the first GPU that is the decision to
 * claim; on the others fairness.fits decides again on what has been read since, so that a change in between may pass or not. A
 * claim beside somebody older tests the occupants too: room is there for both, or it is refused. (A refusal because occupants
 * changed that leave room all the same is left out: it decides again, and claims.) */
#define F_COLDER(g, p, q) (((q) != (p) && it[X(g, q)] && it[X(g, q)] < ca[p]) -> rq[X(g, q)] : 0)
#define COLDER(g, p)      SUM(F_COLDER, g, p)
#define BESIDE(g, p)      (COLDER(g, p) == 0 || ROOM(g, p) >= CNEED(p) + COLDER(g, p))
#ifdef BUG_CLAIM_UNTESTED
#define TESTED(g, p) 1
#elif defined(BUG_GANG_PASSES)
#define TESTED(g, p) ((g) != FIRST(p) || (!((sI[g] >> p) & 1) && BESIDE(g, p)))
#elif defined(BUG_BOOT_UNNOTICED)
#define TESTED(g, p) ((!((sI[g] >> p) & 1) || (g) != FIRST(p)))
#else
#define TESTED(g, p) ((!((sI[g] >> p) & 1) || (g) != FIRST(p)) && BESIDE(g, p))
#endif
/* Lifecycle._acquire: who would pass somebody older to the wake lock gives that one a head start, more time than it takes to react. */
#define F_HURRIES(g, p, q) ((q) != (p) && it[X(g, q)] && it[X(g, q)] < AGE(p) && UP(q) && API(q) \
                            && !(pc[q] == WAITS && !((changed >> (q)) & 1)))
#define HURRIES(g, p)      (ON(g, p) && ANY(F_HURRIES, g, p))
#define F_IDLE(q)          (pc[q] < PENDING || pc[q] > WITHDRAW)
#if RENEWS > 0
#define SLOW               EACH(F_IDLE)   /* a decision and its writes take less than a wake */
#else
#define SLOW               1
#endif
#if RENEWS > 0 && !defined(BUG_NO_HEAD_START)
#define HEADSTART(p)       (!ready[p] || !ANYG(HURRIES, p))
#else
#define HEADSTART(p)       1   /* a time, so nothing else may rest on it */
#endif

#define MARKG(g, p) (ON(g, p) && MARKED(g, p))
inline unmark(g, p)   /* whatever a sidecar writes of its own entry says that it is there */
{
#if STAYS > 0
  dn[g] = dn[g] & ~BIT(p)
#else
  skip
#endif
}
inline w_claim(g, p)
{
  assert(foreign || BESIDE(g, p));   /* nobody passes an older one where it delays that one */
  assert(!((OR(F_VIC, g, p) >> p) & 1));   /* who wakes is nobody's victim yet */
  st[X(g, p)] = CSTATE(p); rs[X(g, p)] = CNEED(p); unmark(g, p);
  if
  :: cw[p] || it[X(g, p)] -> noteI(g, p)
  :: else -> noteO(g, p)   /* a boot that never waited changes neither lock nor intents */
  fi;
  if :: cw[p] -> lock[g] = p + 1 :: else fi;
  it[X(g, p)] = 0; rq[X(g, p)] = 0; vic[X(g, p)] = 0
}
/* Claims.intend names on each GPU only who serves there as it is written. */
#ifdef BUG_NAMES_THE_SLEEPING
#define VICTIMHERE(g, q) (st[X(g, q)] != NONE)
#else
#define VICTIMHERE(g, q) (st[X(g, q)] == SERVING)
#endif
#define F_SH0(q)         VICTIMHERE(0, q)
#define F_SH1(q)         VICTIMHERE(1, q)
#define F_SH2(q)         VICTIMHERE(2, q)
#if NG == 1
#define SERVESHERE(g)    MASK(F_SH0)
#elif NG == 2
#define SERVESHERE(g)    ((g) == 0 -> MASK(F_SH0) : MASK(F_SH1))
#else
#define SERVESHERE(g)    ((g) == 0 -> MASK(F_SH0) : ((g) == 1 -> MASK(F_SH1) : MASK(F_SH2)))
#endif
inline w_turn_back(g, p)
{
  st[X(g, p)] = SLEEPING; rs[X(g, p)] = 0; unmark(g, p);
  if :: lock[g] == p + 1 -> lock[g] = 0 :: else fi;
  it[X(g, p)] = ca[p]; rq[X(g, p)] = CNEED(p); vic[X(g, p)] = 0;
  noteI(g, p); covered(p)
}
#ifdef BUG_YIELD_UNTESTED
#define YREFUSED(p) false
#else
#define YREFUSED(p) (why[p] == YIELDED && cg[p] == FIRST(p) && ((sO[cg[p]] >> p) & 1))   /* Claims.give_way */
#endif
inline w_asleep(g, p)
{
  st[X(g, p)] = SLEEPING; rs[X(g, p)] = 0; unmark(g, p);
  if :: lock[g] == p + 1 -> lock[g] = 0; noteI(g, p) :: else -> noteO(g, p) fi;
  covered(p)
}
inline w_strike(g, p)
{
#ifndef BUG_NO_STRIKE
  for (k : 0 .. NP - 1) { vic[X(g, k)] = vic[X(g, k)] & ~BIT(p) };
  k = 0;
#endif
  skip
}
inline w_release(g, p)
{
  if
  :: it[X(g, p)] || ((OR(F_VIC, g, p) >> p) & 1) -> sI[g] = sI[g] | (MASK(F_CL) & USERS(g) & ~BIT(p))
  :: else
  fi;
  w_strike(g, p);
  it[X(g, p)] = 0; rq[X(g, p)] = 0; vic[X(g, p)] = 0;
  w_asleep(g, p)
}
inline w_withdraw(g, p)
{
  if
  :: it[X(g, p)] -> it[X(g, p)] = 0; rq[X(g, p)] = 0; vic[X(g, p)] = 0; noteI(g, p)
  :: else
  fi
}
#ifdef BUG_OPENS_WHEN_DEAD
#define MAYOPEN(p) true
#else
#define MAYOPEN(p) (!died[p])
#endif
inline reopen(p)   /* Door.open, reopen */
{
  if
  :: MAYOPEN(p) ->
     assert(eng[p] == E_AWAKE); open[p] = 1;
     if :: since[p] -> busy[p] = 1; since[p] = 0 :: else fi
  :: else
  fi
}
inline to_top(p)   /* the memory of one life ends: back to the top of _wanted */
{
  pc[p] = WANTED; ann[p] = 0; tarm[p] = 0; armed[p] = 0; nv[p] = 0; cw[p] = 0; ca[p] = 0; why[p] = 0; rest[p] = 0; cg[p] = 0;
  late[p] = 0; changed = changed & ~BIT(p)
}
inline forget(p)
{
  open[p] = 0; ready[p] = 0; died[p] = 0; ann[p] = 0; tarm[p] = 0; armed[p] = 0; nv[p] = 0; cw[p] = 0; ca[p] = 0; why[p] = 0;
  rest[p] = 0; cg[p] = 0; since[p] = 0; bs[p] = 0; late[p] = 0; busy[p] = 0; changed = changed & ~BIT(p)
}

proctype Pod(byte p)
{
  byte k, j;

  do
  /* ================ clients ================ */
  :: atomic { arr[p] && pc[p] && !((RENEWS >> p) & 1) ->   /* a request comes */
       arr[p]--;
       if
       :: open[p] -> busy[p] = 1
       :: !open[p] && UP(p) && since[p] == 0 -> newrank(since[p]); late[p] = 0; poke(p)
       :: else
       fi }
  :: atomic { busy[p] && !(((ENDLESS | RENEWS) >> p) & 1) -> busy[p] = 0 }   /* what was in flight is finished */
  :: atomic { quits && since[p] -> quits--; since[p] = 0; late[p] = 0; poke(p) }   /* it leaves, or is told at its limit */

  /* ================ time ================ */
  :: atomic { (tarm[p] && !late[p]) -> late[p] = 1; poke(p); tarm[p] = 0 }   /* maxWaitTime */
  :: atomic { prot[p] && (pc[p] == SERVE || pc[p] >= DOWN) ->   /* the end of minRuntime; who has a timer for it awakes */
       prot[p] = 0;
#ifndef BUG_NO_RUNTIME_TIMER
       for (k : 0 .. NP - 1) {
         if :: (armed[k] >> p) & 1 -> poke(k) :: else fi
       };
       k = 0
#endif
     }

  /* ================ the engine ================ */
  :: atomic { (eng[p] == E_WAKING || eng[p] == E_BOOTING) && SLOW -> eng[p] = E_AWAKE }
  :: atomic { eng[p] == E_SLEEPS -> eng[p] = E_ASLEEP }
  :: atomic { deaths && eng[p] != ABSENT ->
       deaths--; eng[p] = ABSENT;
       if :: UP(p) && pc[p] != REPAIR -> died[p] = 1; ready[p] = 0; open[p] = 0; poke(p) :: else fi }   /* engine_died */
  :: atomic { old[p] -> old[p] = 0 }

  /* ================ trouble ================ */
  :: atomic { crashes && (CRASHWHO >> p) & 1 && UP(p) && pc[p] -> crashes--; forget(p); pc[p] = DOWN }
  :: atomic { pc[p] == DOWN -> pc[p] = REPAIR }
  :: atomic { stays && pc[p] == DOWN -> stays--; pc[p] = DEAD }
  :: atomic { deletes && pc[p] && pc[p] != GONE ->
       deletes--; forget(p); old[p] = (eng[p] != ABSENT && eng[p] != E_ASLEEP); eng[p] = ABSENT; jr[p] = 0; prot[p] = 0;
       pc[p] = GONE }
  :: atomic { reborn && pc[p] == GONE -> reborn--; pc[p] = REPAIR }

  /* ================ Lifecycle._repair ================ */
  :: atomic { pc[p] == REPAIR && SETTLES(p) ->
       cg[p] = FIRST(p);
       if
       :: eng[p] == E_AWAKE && !jr[p] && !ANYG(NOTSERVING, p) -> pc[p] = RWITHDRAW
       :: eng[p] == E_AWAKE && (jr[p] || ANYG(NOTSERVING, p)) -> eng[p] = E_SLEEPS; jr[p] = 1; pc[p] = REST; why[p] = BOOTED
#ifdef BUG_TRUSTS_IS_SLEEPING
       :: eng[p] == E_WAKING -> jr[p] = 0; rest[p] = 1; pc[p] = RELEASE
#endif
       :: eng[p] == E_WAKING || eng[p] == E_SLEEPS -> jr[p] = 1; pc[p] = REST; why[p] = BOOTED; eng[p] = E_SLEEPS
       :: eng[p] == E_BOOTING -> eng[p] = ABSENT; jr[p] = 0; pc[p] = RELEASE
       :: eng[p] == E_ASLEEP -> jr[p] = 0; rest[p] = 1; pc[p] = RELEASE
       :: eng[p] == ABSENT -> jr[p] = 0; pc[p] = RELEASE
       fi }
  :: atomic { pc[p] == RWITHDRAW && API(p) ->
       if
       :: w_withdraw(cg[p], p);
          if
          :: LAST(p, cg[p]) -> cg[p] = 0; ready[p] = !died[p]; pc[p] = SERVE; late[p] = 0; reopen(p)
          :: else -> cg[p] = NEXT(p, cg[p])
          fi
       :: apif -> apif--
       fi }

  /* ================ Lifecycle._wanted ================ */
  :: atomic { pc[p] == WANTED ->
       changed = changed & ~BIT(p);
       if
       :: WANT(p) ->
          if :: !ready[p] && !bs[p] -> newrank(bs[p]) :: else fi;
          pc[p] = PENDING
       :: !WANT(p) && HOLDS(p) -> cg[p] = FIRST(p); pc[p] = KEEP
       :: !WANT(p) && !HOLDS(p) -> pc[p] = ASLEEP
       fi }
  :: atomic { pc[p] == KEEP && API(p) ->
       if
       :: w_asleep(cg[p], p); if :: LAST(p, cg[p]) -> cg[p] = 0; pc[p] = ASLEEP :: else -> cg[p] = NEXT(p, cg[p]) fi
       :: apif -> apif--; cg[p] = 0; pc[p] = ASLEEP; changed = changed | BIT(p)   /* tried again after a while */
       fi }
  :: atomic { pc[p] == ASLEEP && (changed >> p) & 1 -> pc[p] = WANTED }

  /* ================ Lifecycle._acquire ================ */
#ifndef BUG_HOLDS_AND_WAITS
#define FREE(p) (WANT(p) && !HOLDS(p))
#else
#define FREE(p) WANT(p)
#endif
  :: atomic { pc[p] == PENDING && (HEADSTART(p) || !FREE(p) || !FITS(p)) ->
       changed = changed & ~BIT(p); tarm[p] = 0; armed[p] = 0; nv[p] = 0; cw[p] = ready[p]; ca[p] = 0;
       if :: !bs[p] && !ready[p] -> newrank(bs[p]) :: else fi;
       nm = NAMED(p);
       if
       :: !WANT(p) ->
#ifndef BUG_HOLDS_AND_WAITS
          if :: HOLDS(p) -> cg[p] = FIRST(p); pc[p] = RELEASE; rest[p] = ready[p] :: else ->
#endif
          if :: ann[p] -> cg[p] = FIRST(p); pc[p] = WITHDRAW :: else -> to_top(p) fi
#ifndef BUG_HOLDS_AND_WAITS
          fi
#endif
#ifndef BUG_HOLDS_AND_WAITS
       :: WANT(p) && HOLDS(p) ->
          ca[p] = AGE(p); ann[p] = 1; cg[p] = FIRST(p); nv[p] = 1; pc[p] = TURNBACK
#endif
       :: FREE(p) && FITS(p) ->
          ca[p] = AGE(p);
          for (j : 0 .. NG - 1) { sI[j] = sI[j] & ~BIT(p) };
          j = 0; cg[p] = FIRST(p); pc[p] = CLAIM;
#ifndef BUG_INTENT_FORGOTTEN
          ann[p] = 1
#else
          skip
#endif
       :: FREE(p) && !FITS(p) ->
          cg[p] = FIRST(p);
          if
#ifndef BUG_HOPELESS_WAITS
          :: ANYG(NEVER, p) -> if :: ann[p] -> ann[p] = 0; nv[p] = 1; pc[p] = WITHDRAW :: else -> cg[p] = 0; pc[p] = WAITS fi
          :: !ANYG(NEVER, p) ->
#else
          :: true ->
#endif
             ann[p] = 1; pc[p] = INTEND; ca[p] = AGE(p);
             if
             :: ISPOLITE(p)   /* names nobody, at no time */
             :: !ISPOLITE(p) && !late[p] && ANYG(SHORT, p) -> tarm[p] = 1
             :: !ISPOLITE(p) && !(!late[p] && ANYG(SHORT, p)) ->
                if
                :: !ANYG(LACKS, p)
                :: ANYG(LACKS, p) && VICTIMS(p, 1) -> nv[p] = 1
                :: ANYG(LACKS, p) && VICTIMS(p, 2) -> nv[p] = 2
#if NP >= 3
                :: ANYG(LACKS, p) && VICTIMS(p, 3) -> nv[p] = 3
                :: ANYG(LACKS, p) && VICTIMS(p, 4) -> nv[p] = 4
                :: ANYG(LACKS, p) && VICTIMS(p, 5) -> nv[p] = 5
                :: ANYG(LACKS, p) && VICTIMS(p, 6) -> nv[p] = 6
#endif
#if NP >= 4
                :: ANYG(LACKS, p) && VICTIMS(p, 7) -> nv[p] = 7
                :: ANYG(LACKS, p) && VICTIMS(p, 8) -> nv[p] = 8
                :: ANYG(LACKS, p) && VICTIMS(p, 9) -> nv[p] = 9
                :: ANYG(LACKS, p) && VICTIMS(p, 10) -> nv[p] = 10
                :: ANYG(LACKS, p) && VICTIMS(p, 11) -> nv[p] = 11
                :: ANYG(LACKS, p) && VICTIMS(p, 12) -> nv[p] = 12
                :: ANYG(LACKS, p) && VICTIMS(p, 13) -> nv[p] = 13
                :: ANYG(LACKS, p) && VICTIMS(p, 14) -> nv[p] = 14
#endif
                :: ANYG(LACKS, p) && !ENOUGH(p, ELIGIBLE(p)) -> armed[p] = CAND(p) & PROTECTED
                fi
             fi
          fi
       fi;
       nm = 0 }
  :: atomic { pc[p] == CLAIM && API(p) ->
       if
       :: MAYCLAIM(cg[p], p) && TESTED(cg[p], p) ->
          w_claim(cg[p], p);
          if
          :: LAST(p, cg[p]) -> cg[p] = 0; ca[p] = 0; pc[p] = BRINGUP
          :: else -> cg[p] = NEXT(p, cg[p])
          fi
       :: (!MAYCLAIM(cg[p], p) || !TESTED(cg[p], p) || ((sI[cg[p]] >> p) & 1)) ->   /* refused */
#ifdef BUG_GANG_HOLDS
          cg[p] = 0; ca[p] = 0; pc[p] = PENDING
#else
          cg[p] = PREV(p, cg[p]);
          if :: cg[p] == NG -> cg[p] = 0; ca[p] = 0; pc[p] = PENDING :: else -> pc[p] = TURNBACK fi
#endif
       :: apif && MAYCLAIM(cg[p], p) && TESTED(cg[p], p) ->
          apif--; w_claim(cg[p], p); changed = changed | BIT(p); cg[p] = 0; ca[p] = 0; pc[p] = PENDING
       :: apif -> apif--; cg[p] = 0; ca[p] = 0; pc[p] = PENDING
       fi }
  :: atomic { pc[p] == TURNBACK && API(p) ->
       if
       :: if :: HOLDG(cg[p], p) -> w_turn_back(cg[p], p) :: else fi;
          if
          :: nv[p] -> if :: LAST(p, cg[p]) -> cg[p] = 0; ca[p] = 0; nv[p] = 0; pc[p] = PENDING :: else -> cg[p] = NEXT(p, cg[p]) fi
          :: else -> cg[p] = PREV(p, cg[p]); if :: cg[p] == NG -> cg[p] = 0; ca[p] = 0; pc[p] = PENDING :: else fi
          fi
       :: apif -> apif--; cg[p] = 0; ca[p] = 0; nv[p] = 0; pc[p] = PENDING
       fi }
  :: atomic { pc[p] == INTEND && API(p) ->
       if
       :: if
          :: it[X(cg[p], p)] == ca[p] && rq[X(cg[p], p)] == CNEED(p) && (nv[p] & ~vic[X(cg[p], p)] & SERVESHERE(cg[p])) == 0
          :: else ->
             it[X(cg[p], p)] = ca[p]; rq[X(cg[p], p)] = CNEED(p);
             for (k : 0 .. NP - 1) {
               if :: (nv[p] >> k) & 1 && VICTIMHERE(cg[p], k) -> vic[X(cg[p], p)] = vic[X(cg[p], p)] | BIT(k) :: else fi
             };
             k = 0; noteI(cg[p], p)
          fi;
          if
          :: LAST(p, cg[p]) ->
             cg[p] = 0; ca[p] = 0;
             if :: nv[p] -> nv[p] = 0; pc[p] = PENDING :: else -> assert(!HOLDS(p)); pc[p] = WAITS fi
          :: else -> cg[p] = NEXT(p, cg[p])
          fi
       :: apif -> apif--; cg[p] = 0; ca[p] = 0; pc[p] = PENDING
       fi }
  :: atomic { pc[p] == WITHDRAW && API(p) ->
       if
       :: w_withdraw(cg[p], p);
          if
          :: LAST(p, cg[p]) -> cg[p] = 0; if :: nv[p] -> nv[p] = 0; pc[p] = WAITS :: else -> to_top(p) fi
          :: else -> cg[p] = NEXT(p, cg[p])
          fi
       :: apif -> apif--; cg[p] = 0; if :: nv[p] -> ann[p] = 1 :: else fi; nv[p] = 0; pc[p] = PENDING
       fi }
  :: atomic { pc[p] == WAITS && (changed >> p) & 1 -> pc[p] = PENDING }

  /* ================ Lifecycle._bring_up ================ */
  :: atomic { pc[p] == BRINGUP ->
#ifndef BUG_BOOT_UNDER_A_WAKE
       if
       :: cw[p] != ready[p] -> pc[p] = PENDING   /* _acquire: the engine died meanwhile */
       :: else ->
#endif
       tarm[p] = 0; armed[p] = 0; nv[p] = 0; ann[p] = 0; late[p] = 0; bs[p] = 0; changed = changed & ~BIT(p);
       if
       :: ready[p] -> assert(!ANYG(TWOWAKE, p)); eng[p] = (eng[p] == E_ASLEEP -> E_WAKING : ABSENT)
       :: else -> died[p] = 0; eng[p] = E_BOOTING
       fi;
       cw[p] = ready[p]; jr[p] = 1; pc[p] = ENGINE; covered(p); assert(!ANYG(OVER, p))
#ifndef BUG_BOOT_UNDER_A_WAKE
       fi
#endif
     }
  :: atomic { pc[p] == ENGINE && eng[p] == E_AWAKE ->
       jr[p] = 0; ready[p] = 1; bs[p] = 0; prot[p] = !((SHORTRUN >> p) & 1);
       if
       :: cw[p] || since[p] ->
          pc[p] = SERVE; late[p] = 0; reopen(p)
       :: else -> pc[p] = REST; why[p] = BOOTED; eng[p] = E_SLEEPS; jr[p] = 1; late[p] = 0
       fi;
       cw[p] = 0 }
  :: atomic { pc[p] == ENGINE && (eng[p] == ABSENT || fails) ->   /* it fails, or hangs until its deadline */
       if :: eng[p] != ABSENT -> fails-- :: else fi;
       since[p] = 0; late[p] = 0; cw[p] = 0; pc[p] = FAILED }
  :: atomic { pc[p] == FAILED ->
       eng[p] = ABSENT; jr[p] = 0; ready[p] = 0; rest[p] = 0; cg[p] = FIRST(p); pc[p] = RELEASE }

  /* ================ Lifecycle._serve ================ */
  :: atomic { pc[p] == SERVE && PUBLISHES(p) && API(p) ->   /* _keep_entry: publish */
       cg[p] = FIRST(p);
       if :: !CLAIMED(cg[p], p) -> cg[p] = NEXT(p, cg[p]) :: else fi;
       if :: !CLAIMED(cg[p], p) -> cg[p] = NEXT(p, cg[p]) :: else fi;
       if
       :: st[X(cg[p], p)] == WAKING || st[X(cg[p], p)] == CONVERTING ->
          st[X(cg[p], p)] = SERVING; rs[X(cg[p], p)] = NEEDW(p); unmark(cg[p], p);
          if :: lock[cg[p]] == p + 1 -> lock[cg[p]] = 0 :: else fi;
          noteI(cg[p], p); covered(p)
       :: else -> assert(false)   /* serving without an entry */
       :: apif -> apif--
       fi;
       cg[p] = 0 }
#if STAYS > 0
  :: atomic { pc[p] == SERVE && ANYG(MARKG, p) && API(p) ->   /* _keep_entry: it is not down */
       j = FIRST(p);
       if :: !MARKG(j, p) -> j = NEXT(p, j) :: else fi;
       if :: !MARKG(j, p) -> j = NEXT(p, j) :: else fi;
       unmark(j, p); noteO(j, p); j = 0 }
#endif
  :: atomic { pc[p] == SERVE && died[p] -> open[p] = 0; cg[p] = FIRST(p); why[p] = CRASHED; pc[p] = LEAVE }
#ifndef BUG_HALF_LEFT
  :: atomic { pc[p] == SERVE && ANYG(LEAVING, p) && API(p) -> open[p] = 0; cg[p] = FIRST(p); why[p] = IDLE; pc[p] = LEAVE }
#endif
  :: atomic { pc[p] == SERVE && !SAFE(p) && ((NAMED(p) >> p) & 1) && API(p) ->
       assert(!POP(p) && !prot[p]);
       open[p] = 0; cg[p] = FIRST(p); why[p] = PREEMPTED; pc[p] = LEAVE }
  :: atomic { pc[p] == SERVE && !POP(p) && !prot[p] && !busy[p] && !((KEEPS >> p) & 1) && GIVESWAY(p) && API(p) ->
       for (j : 0 .. NG - 1) { sO[j] = sO[j] & ~BIT(p) };
       j = 0; open[p] = 0; cg[p] = FIRST(p); why[p] = YIELDED; pc[p] = LEAVE }
  :: atomic { pc[p] == SERVE && !POP(p) && !prot[p] && !busy[p] && ((IDLES >> p) & 1) && API(p) ->
       open[p] = 0; cg[p] = FIRST(p); why[p] = IDLE; pc[p] = LEAVE }

  /* ================ Lifecycle._put_to_sleep ================ */
  :: atomic { pc[p] == LEAVE ->
       if
       :: YREFUSED(p) ->   /* refused: it serves on */
          cg[p] = 0; why[p] = 0; pc[p] = SERVE; reopen(p)
       :: !YREFUSED(p) && API(p) ->
          assert(why[p] != YIELDED || cg[p] != FIRST(p) || GSET(p) > 2 || NEEDS(cg[p], p));   /* nobody gives way in vain */
          if :: st[X(cg[p], p)] > SLEEPING -> st[X(cg[p], p)] = DEACTIVATING :: else fi;
          unmark(cg[p], p);
          if :: why[p] != YIELDED && lock[cg[p]] == p + 1 -> lock[cg[p]] = 0; noteI(cg[p], p) :: else -> noteO(cg[p], p) fi;
          covered(p);
          if :: LAST(p, cg[p]) -> cg[p] = 0; pc[p] = DRAIN :: else -> cg[p] = NEXT(p, cg[p]) fi
       :: (apif || !API(p)) && !YREFUSED(p) ->   /* no answer */
          if :: API(p) -> apif-- :: else fi;
          if
          :: API(p) && st[X(cg[p], p)] > SLEEPING -> st[X(cg[p], p)] = DEACTIVATING; unmark(cg[p], p); noteO(cg[p], p)
          :: true
          fi;
          cg[p] = 0;
          if
          :: why[p] == CRASHED -> pc[p] = DRAIN
          :: else -> why[p] = 0; pc[p] = SERVE; reopen(p)
          fi
       fi }
  :: atomic { pc[p] == DRAIN ->   /* nothing is in flight any more, or drainTimeout */
       busy[p] = 0; pc[p] = REST;
       if
       :: died[p] || eng[p] == ABSENT -> eng[p] = ABSENT
       :: else -> eng[p] = E_SLEEPS; jr[p] = 1
       fi }
  :: atomic { pc[p] == REST && (eng[p] == E_ASLEEP || eng[p] == ABSENT || fails) ->
       if :: eng[p] == E_SLEEPS -> fails--; eng[p] = ABSENT :: else fi;   /* it does not sleep by its deadline: killed */
       rest[p] = (eng[p] == E_ASLEEP); jr[p] = 0; prot[p] = 0; cg[p] = FIRST(p); pc[p] = RELEASE;
#ifndef BUG_READY_WHEN_DEAD
       ready[p] = rest[p]
#else
       skip
#endif
     }
#ifdef BUG_RELEASE_FIRST
  :: atomic { pc[p] == REST && eng[p] == E_SLEEPS -> cg[p] = FIRST(p); rest[p] = 1; pc[p] = RELEASE }
#endif
  :: atomic { pc[p] == RELEASE && API(p) ->
       if
       :: w_release(cg[p], p);
          if
          :: LAST(p, cg[p]) ->
#ifndef BUG_READY_WHEN_DEAD
             ready[p] = (rest[p] && !died[p]);
#else
             ready[p] = rest[p];
#endif
             to_top(p)
          :: else -> cg[p] = NEXT(p, cg[p])
          fi
       :: apif -> apif--
       fi }

  /* ================ the end: nothing is left to do ================ */
  od
}

#if RENEWS > 0
/* Requests that keep coming and are finished: a process of its own for each pod, since fairness is among processes. */
proctype Clients(byte p)
{
  byte k, j;
  do
  :: atomic { open[p] && !busy[p] -> busy[p] = 1 }
  :: atomic { !open[p] && UP(p) && !since[p] -> newrank(since[p]); closeranks(); late[p] = 0; poke(p) }
  :: atomic { busy[p] -> busy[p] = 0 }
  od
}
#endif

/* controller/agent: Agent._clean and cleanup.clean, one GPU at a time; and foreignMemoryBytes. */
#define F_DIRTY(g, p, q) (ON(g, q) && ((pc[q] == GONE && !old[q] && (st[X(g, q)] || lock[g] == (q) + 1)) \
                          || (F_DOWN(q) && it[X(g, q)]) || (F_MARK(q) && rs[X(g, q)] && !MARKED(g, q))))
#define DIRTY(g) ANY(F_DIRTY, g, 0)
#if STAYS > 0 && !defined(BUG_DOWN_UNSAID)
#define F_MARK(q) (pc[q] == DOWN || pc[q] == DEAD)
#else
#define F_MARK(q) 0
#endif
#define F_GONE(q) (pc[q] == GONE && !old[q])
#ifdef BUG_INTENTS_OF_THE_DOWN_STAY
#define F_DOWN(q) (pc[q] == GONE)
#else
#define F_DOWN(q) (pc[q] >= DOWN)
#endif
inline looks()
{
  agst = 0; aggone = MASK(F_GONE); agdown = MASK(F_DOWN);
#if STAYS > 0
  agmark = MASK(F_MARK)
#else
  skip
#endif
}
inline looked()
{
  ag = 0; agst = 0; aggone = 0; agdown = 0;
#if STAYS > 0
  agmark = 0
#else
  skip
#endif
}
proctype Agent()
{
  byte k;
  do
#if CRASHES + DELETES > 0
  :: atomic { !ag && API(NP) && DIRTY(0) -> ag = 1; looks() }
#if NG > 1
  :: atomic { !ag && API(NP) && DIRTY(1) -> ag = 2; looks() }
#endif
#if NG > 2
  :: atomic { !ag && API(NP) && DIRTY(2) -> ag = 3; looks() }
#endif
#ifdef BUG_AGENT_UNCONDITIONAL
  :: atomic { ag ->
#else
  :: atomic { ag && agst -> looked() }   /* refused: looks again */
  :: atomic { ag && !agst && API(NP) ->
#endif
       for (k : 0 .. NP - 1) {
#if STAYS > 0
         if :: (agmark >> k) & 1 && rs[X(ag - 1, k)] -> dn[ag - 1] = dn[ag - 1] | BIT(k) :: else fi;
#endif
         if :: (agdown >> k) & 1 -> it[X(ag - 1, k)] = 0; rq[X(ag - 1, k)] = 0; vic[X(ag - 1, k)] = 0 :: else fi;
         if
         :: (aggone >> k) & 1 ->
            if :: lock[ag - 1] == k + 1 -> lock[ag - 1] = 0 :: else fi;
            if
            :: st[X(ag - 1, k)] == SLEEPING -> st[X(ag - 1, k)] = NONE
            :: st[X(ag - 1, k)] > SLEEPING -> st[X(ag - 1, k)] = SLEEPING; rs[X(ag - 1, k)] = 0; unmark((ag - 1), k); covered(k)
            :: else
            fi
         :: else
         fi
       };
       k = ag - 1; looked();
       noteI(k, NP); k = 0 }
#endif
  :: atomic { intrude -> intrude--; foreign = 1; noteO(0, NP) }
  :: atomic { foreign -> foreign = 0; noteO(0, NP) }
#if CUTS > 0
  :: atomic { cuts ->
       cuts--;
       if
       :: CUTWHO & 1 -> cut = cut | 1
       :: CUTWHO & 2 -> cut = cut | 2
       :: NP > 2 && CUTWHO & 4 -> cut = cut | 4
       :: (CUTWHO >> NP) & 1 -> cut = cut | BIT(NP)
       :: (CUTWHO >> NP) & 2 -> cut = 31
       fi }
  :: atomic { heals && cut -> heals--; cut = 0; changed = changed | EVENTED }   /* it lists anew */
#endif
  /* Trouble need not come. */
  :: atomic { crashes + stays + deaths + fails + apif + quits + deletes + reborn + intrude + cuts + heals > 0 ->
       crashes = 0; stays = 0; deaths = 0; fails = 0; apif = 0; quits = 0; deletes = 0; reborn = 0; intrude = 0; cuts = 0; heals = 0 }
  od
}

/* When nothing more can happen, everybody has been served, or could not be; and nothing is left behind. */
#define F_STUCK(g, p, q)  (((q) != (p) && (POP(q) || !UP(q) || !API(q))) -> rs[X(g, q)] : 0)
#define F_STUCKI(g, p, q) (((q) != (p) && ON(g, q) && (pc[q] == WAITS || !API(q)) && it[X(g, q)] && it[X(g, q)] < AGE(p)) -> rq[X(g, q)] : 0)
#define EXCUSED(g, p)     (ON(g, p) && (NEED(p) > TOT(g) - SUM(F_STUCK, g, p) - STUCKI(g, p) \
                           || (lock[g] && lock[g] != (p) + 1 && (pc[lock[g] - 1] == DEAD || !API(lock[g] - 1)))))
/* Known and left so: who leaves, or is named, and does not reach the API holds its waiter up, though others could make room. */
#if CUTS > 0 && !defined(STRICT)
#define F_CUTOFF(g, p, q) ((q) != (p) && !API(q) && rs[X(g, q)] && LEAVES(g, q, NAMED(p)))
#define CUTOFF(g, p)      (ON(g, p) && ANY(F_CUTOFF, g, p))
#else
#define CUTOFF(g, p)      0
#endif
#define SPACE(g, p)       (ON(g, p) && ROOM(g, p) < NEED(p))
#if STAYS + CUTS + POLITE > 0
#define STUCKI(g, p)      SUM(F_STUCKI, g, p)
#else
#define STUCKI(g, p)      0
#endif
proctype Judge()
{
  byte p, g;
  timeout ->
  atomic {
    for (p : 0 .. NP - 1) {
      if
      :: !API(p) -> assert(!open[p] || eng[p] == E_AWAKE || died[p])   /* it does what it can without: it serves on, or waits */
      :: API(p) && (pc[p] == GONE || pc[p] == DEAD) && !API(NP)        /* nobody cleans */
      :: API(p) && (pc[p] == GONE || pc[p] == DEAD) && API(NP) -> assert(!ANYG(MYIT, p));
         if :: pc[p] == GONE -> assert(!HOLDS(p)) :: else fi
      :: API(p) && pc[p] == ASLEEP -> assert(ready[p] && !since[p] && eng[p] == E_ASLEEP && !HOLDS(p) && !ANYG(MYIT, p))
      :: API(p) && pc[p] == WAITS ->   /* who may not preempt waits as long as there is no room */
         assert(ANYG(EXCUSED, p) || ANYG(CUTOFF, p) || (ISPOLITE(p) && ANYG(SPACE, p))); assert(!HOLDS(p))
      :: API(p) && pc[p] == SERVE -> assert(eng[p] == E_AWAKE && open[p] && !since[p] && !ANYG(NOTSERVING, p) && !ANYG(MARKG, p) && !ANYG(MYIT, p))
      :: else -> assert(false)
      fi
    };
    for (g : 0 .. NG - 1) {
      assert(!lock[g] || pc[lock[g] - 1] == DEAD || !API(lock[g] - 1) || (pc[lock[g] - 1] == GONE && !API(NP)))
    }
  }
}

#if RENEWS > 0
ltl fed { [] ((since[0] != 0) -> <> (since[0] == 0)) }   /* whoever asks of pod 0 is served */
#endif

init
{
  byte p;
  atomic {
    for (p : 0 .. NP - 1) {
      pc[p] = WANTED; arr[p] = PICK(p, RQ0, RQ1, RQ2, RQ3);
      if :: (UNBOOTED >> p) & 1 -> skip :: else -> eng[p] = E_ASLEEP; ready[p] = 1 fi
    };
    p = 0;
    run Agent(); run Judge();
    run Pod(0); run Pod(1);
#if NP >= 3
    run Pod(2);
#endif
#if NP >= 4
    run Pod(3);
#endif
#if RENEWS > 0
    for (p : 0 .. NP - 1) {
      if :: (RENEWS >> p) & 1 -> run Clients(p) :: else fi
    };
#endif
    p = 0
  }
}
