// Package limiter keeps the calls of one endpoint of one account below a limit
// per second, and uses that limit up.
//
// It promises that of any limit+1 sends the first and the last are at least one
// second plus the jitter apart, measured from the end of one write to the start
// of the other; so no sliding second at the server holds more than limit calls as
// long as some calls take no longer than others, plus the jitter, to get there.
// That is 5 ms unless Tolerate says otherwise. Under backlog 99.5 % of the limit is
// used, or 95.2 % at 50 ms: a second's calls are spread over a second and the jitter.
//
// Both hold from one owner of an account to the next. Whoever gives an endpoint
// up calls HandOver when it has sent its last call, which waits until nobody
// could tell its sends from evenly spaced ones: no time at all after a pause, a
// spacing under backlog, up to a second after a stall that made them bunch. Only
// then may another Limiter begin, which does so at once, with a turn to give: the
// wait lies with the one who knows whether it is needed. An owner that died
// called nothing; its successor says with Assume how long ago it must have
// stopped.
//
// Two guards stand one behind the other. Run, the one dispatcher, spaces the
// callers of Acquire evenly by a token bucket of burst 1, or of a millisecond's turns
// where a limit is so high that timers cannot space them. Do, called with the write
// itself, looks at the times of the last sends and holds the write back
// where they are too close: after a stall many callers hold a turn that has
// long been due, and the bucket no longer sees them.
//
// A caller takes its turn with Acquire, gets its connection ready, and writes
// within Do:
//
//	if err := l.Acquire(ctx); err != nil {
//		return err
//	}
//	return l.Do(ctx, func() error { return write(request) })
package limiter

import (
	"container/list"
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// DefaultJitter is the jitter between send and arrival that the limit survives.
const DefaultJitter = 5 * time.Millisecond

const (
	// slack is by how much the bucket spreads the sends of a second over more than a
	// second plus the jitter, so that in steady state it is what a caller waits for.
	slack = 25 * time.Microsecond
	// recoverEvery and recoverShare say how a cut limit grows back: from half to
	// the whole in ten seconds.
	recoverEvery = time.Second
	recoverShare = 1.0 / 20
	// cutEvery is how long refusals belong together: calls that were under way
	// together are refused together.
	cutEvery = time.Second
	// fewCut is what each of a few refusals cuts the rate by: what jitter costs. fewShare
	// of the limit, and at least one a second, are few.
	fewCut   = 0.02
	fewShare = 0.02
)

// Limiter hands out turns to call one endpoint. Its methods may be called
// concurrently; Run runs once at a time.
type Limiter struct {
	ceiling int
	wake    chan struct{} // holds at most one signal for Run

	mu          sync.Mutex // guards what follows
	waiting     list.List  // of chan struct{}, in order of arrival; closed to grant
	bucket      *rate.Limiter
	turn        *rate.Reservation // of the first who waits; nil when nobody does
	sends       window
	used        float64 // share of the limit that the bucket hands out
	limit       int     // calls a second: the ceiling, or less when the server says so
	share       float64 // of limit, (0, 1]: below 1 while recovering from a refusal
	grown       time.Time
	cut         time.Time // when the first of the refusals came
	refusals    int       // since cut, within cutEvery
	lowered     time.Time // when the server last stated less than before
	pausedUntil time.Time
}

// New returns a Limiter of at most perSecond calls in any second. It panics
// when perSecond is below 1: that endpoint could never be called.
func New(perSecond int) *Limiter {
	if perSecond < 1 {
		panic(fmt.Sprintf("limiter: %d calls a second", perSecond))
	}
	l := &Limiter{
		ceiling: perSecond,
		wake:    make(chan struct{}, 1),
		limit:   perSecond,
		share:   1,
		sends:   window{times: make([]time.Time, perSecond)},
	}
	l.bucket = rate.NewLimiter(l.rate(), l.burst())
	l.Tolerate(DefaultJitter)
	return l
}

// Tolerate makes the limit hold also when some calls take up to jitter longer than
// others to get to the server. It is called before the first send.
func (l *Limiter) Tolerate(jitter time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sends.span = time.Second + jitter
	l.used = float64(time.Second) / float64(l.sends.span+slack)
	l.changeRate(time.Now())
}

// Run hands out turns until ctx ends, and returns its error. Callers of Acquire
// wait while it does not run. Run again, it goes on where it was.
func (l *Limiter) Run(ctx context.Context) error {
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.unreserve(time.Now())
	}()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		timer.Reset(l.dispatch())
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		case <-l.wake:
		}
	}
}

// Assume takes it that somebody else has used up the limit, all at once and so
// long ago. It is called before the first send.
func (l *Limiter) Assume(ago time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sends.fill(time.Now().Add(-ago))
}

// HandOver returns once another Limiter of the same ceiling may begin. It is
// called after the last send, and takes a second at most.
//
// With every for the spacing of the bucket and a burst of 1, it waits until the n-th
// last send is n*every ago, for all n. So of the sends before the handover less than
// (span-d)/every lie within a span that ends d after it, and those of the other
// Limiter are at most d/every + 1 by then, stalled or not, because its bucket
// grants no more turns: together they are no more than the limit, because
// span/every, for a span of a second plus the jitter, is just below it. Of a larger
// burst it waits for the spacing of the rest as well.
func (l *Limiter) HandOver() {
	l.mu.Lock()
	every := l.spacing()
	wait := l.sends.even(time.Now().Add(-time.Duration(l.burst()-1)*every), every)
	l.mu.Unlock()
	time.Sleep(wait)
}

// burst is how many turns the bucket keeps for when the dispatcher is late: one, but
// those of a millisecond, which is what timers are late by, where that is more.
func (l *Limiter) burst() int { return max(1, l.ceiling/1000) }

// spacing is the time between two turns at the ceiling. The caller holds mu.
func (l *Limiter) spacing() time.Duration {
	return time.Duration(float64(time.Second) / (l.used * float64(l.ceiling)))
}

// idle is how long Run sleeps when nobody waits; a new waiter wakes it.
const idle = time.Hour

// dispatch grants turns that are due and returns when the next one will be.
//
// The next turn is reserved before it is due, at the time that follows from the
// last one: granted a little late, as timers are, it does not put off those
// after it.
func (l *Limiter) dispatch() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	l.recover(now)
	for {
		first := l.waiting.Front()
		if first == nil {
			l.unreserve(now)
			return idle
		}
		if wait := max(l.pausedUntil.Sub(now), l.sends.wait(now, l.limit)); wait > 0 {
			return wait
		}
		if l.turn == nil {
			l.turn = l.bucket.ReserveN(now, 1)
		}
		if wait := l.turn.DelayFrom(now); wait > 0 {
			return wait
		}
		l.turn = nil
		close(l.waiting.Remove(first).(chan struct{}))
	}
}

// unreserve gives a turn that is not due yet back to the bucket. The caller
// holds mu.
func (l *Limiter) unreserve(now time.Time) {
	if l.turn != nil {
		l.turn.CancelAt(now)
		l.turn = nil
	}
}

// Acquire waits for the caller's turn to send, first come first served, and
// returns ctx's error when ctx ends before. A caller that gave up costs no
// turn. A caller that got its turn sends at once, through Do.
func (l *Limiter) Acquire(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	granted := make(chan struct{})
	l.mu.Lock()
	place := l.waiting.PushBack(granted)
	first := l.waiting.Front() == place
	l.mu.Unlock()
	if first {
		l.notify()
	}
	select {
	case <-granted:
		return nil
	case <-ctx.Done():
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-granted: // the turn was taken from the bucket: use it
		return nil
	default:
		l.waiting.Remove(place)
		if l.waiting.Len() == 0 {
			l.notify() // the turn reserved for us is nobody's
		}
		return ctx.Err()
	}
}

// Do calls write as soon as the sends of the last second leave room for one
// more, and returns what it returns; it returns ctx's error, and does not call
// write, when ctx ends before. A send counts from the start of write for those
// before it and from its end for those after it, however long write takes.
//
// Do takes no turn: the caller has one from Acquire.
func (l *Limiter) Do(ctx context.Context, write func() error) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		wait := l.begin()
		if wait <= 0 {
			break
		}
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
	defer l.end()
	return write()
}

func (l *Limiter) begin() (wait time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if wait := l.sends.wait(time.Now(), l.limit); wait > 0 {
		return wait
	}
	l.sends.writing++
	return 0
}

func (l *Limiter) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sends.writing--
	l.sends.add(time.Now())
}

// Observe takes the limit per second that the server has stated with an answer.
// A lower one holds from now on; a higher one holds up to the ceiling; zero,
// which is no statement, changes nothing.
//
// How many calls the server says remain is not asked for: at full use the last
// answer of each of its seconds rightly says none.
func (l *Limiter) Observe(perSecond int) {
	perSecond = min(perSecond, l.ceiling)
	if perSecond < 1 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if perSecond < l.limit {
		l.lowered = now
	}
	if l.limit != perSecond {
		l.limit = perSecond
		l.changeRate(now)
	}
}

// changeRate makes the bucket follow limit and share; the one turn that may be
// reserved stays as it is. The caller holds mu.
func (l *Limiter) changeRate(now time.Time) {
	l.bucket.SetLimitAt(now, l.rate())
	l.notify()
}

// Throttled says that the server has refused a call for coming too soon. The
// rate is cut at once: a little for each of a few refusals, which jitter explains,
// and by half, once a second, for more, which mean that somebody else uses the
// limit too. It grows back by a twentieth of the limit each second without a
// refusal. No turn is handed out for wait, which is zero when the server did not
// say how long.
//
// In the second after the server has stated a lower limit, refusals are of calls
// that were made under the higher one: they change nothing more.
func (l *Limiter) Throttled(wait time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	l.recover(now)
	if until := now.Add(wait); until.After(l.pausedUntil) {
		l.pausedUntil = until
	}
	if now.Sub(l.lowered) < cutEvery {
		return
	}
	l.grown = l.pausedUntil
	if now.Sub(l.cut) >= cutEvery {
		l.cut, l.refusals = now, 0
	}
	l.refusals++
	switch few := max(1, int(fewShare*float64(l.limit))); {
	case l.refusals <= few:
		l.share *= 1 - fewCut
	case l.refusals == few+1:
		l.share /= 2
	default:
		return
	}
	l.share = max(l.share, 1/float64(l.limit))
	l.changeRate(now)
}

// recover grows the share back for each whole second since it last changed.
// The caller holds mu.
func (l *Limiter) recover(now time.Time) {
	if l.share >= 1 {
		return
	}
	steps := int64(now.Sub(l.grown) / recoverEvery)
	if steps < 1 {
		return
	}
	l.grown = l.grown.Add(time.Duration(steps) * recoverEvery)
	l.share = min(1, l.share+float64(steps)*recoverShare)
	l.changeRate(now)
}

// rate is what the bucket hands out a second. The caller holds mu.
func (l *Limiter) rate() rate.Limit {
	return rate.Limit(l.used * l.share * float64(l.limit))
}

// Limit returns the calls a second that are allowed now: the ceiling, or less
// after Observe or Throttled.
func (l *Limiter) Limit() float64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.recover(time.Now())
	return l.share * float64(l.limit)
}

// Utilisation returns the sends of the last second as a share of the limit
// before any cut by Throttled.
func (l *Limiter) Utilisation() float64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return float64(l.sends.since(time.Now().Add(-time.Second))) / float64(l.limit)
}

// Waiting returns how many callers of Acquire wait for their turn.
func (l *Limiter) Waiting() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.waiting.Len()
}

func (l *Limiter) notify() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
