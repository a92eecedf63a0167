package remote

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"attentive.internal/pkg/backoff"
	"attentive.internal/pkg/fault"
)

const (
	// lowFor is how long a receiver is believed that lets in fewer than it was told
	// to: it may have been a passing trouble.
	lowFor = 10 * time.Minute
	// A receiver that counts sessions may take a while to notice that one has ended.
	// It is left settling for that, then five times as long as it has had; whom it
	// refuses after patience it refuses for another reason.
	settling = time.Second
	patience = 5 * time.Second
)

// Sessions opens the sessions of one account: at most as many at a time as the
// configuration allows, and fewer where the receiver lets in fewer. A log-in that
// is refused while another session is open waits for its end, or until the receiver
// is to be asked again, and one that is refused right after the end of a session is
// tried again a little later; neither is a fault. It may be used by several
// goroutines at once, and is fair to them.
type Sessions struct {
	log  *slog.Logger
	turn chan struct{} // held by the one that logs in
	left chan struct{} // tells that one of the end of a session

	mu     sync.Mutex // guards what follows
	open   int
	limit  limit
	ended  time.Time     // of the last session; zero: there was none
	settle time.Duration // that the receiver needs after that, while the limit is low
}

// NewSessions returns the sessions of an account that allows that many at a time.
func NewSessions(most int, log *slog.Logger) *Sessions {
	return &Sessions{log: log, turn: make(chan struct{}, 1), left: make(chan struct{}, 1), limit: limit{most: most}, settle: settling}
}

// Use runs work with a session, which it closes. Waiting for one ends with ctx,
// Interrupted; the errors of logging in are those of Dial.
func (s *Sessions) Use(ctx context.Context, cfg Config, work func(*Session) error) error {
	session, err := s.begin(ctx, cfg)
	if err != nil {
		return err
	}
	defer s.end()
	return session.use(work)
}

// Use runs work with a session that counts among no account's.
func Use(ctx context.Context, cfg Config, work func(*Session) error) error {
	session, err := Dial(ctx, cfg)
	if err != nil {
		return err
	}
	return session.use(work)
}

// use runs work and closes the session.
func (s *Session) use(work func(*Session) error) error {
	defer func() { _ = s.Close() }() // loses nothing: what was stored was confirmed
	return work(s)
}

// begin logs in as soon as there is room.
func (s *Sessions) begin(ctx context.Context, cfg Config) (*Session, error) {
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return nil, fault.Interruptedf("wait for a session: %w", context.Cause(ctx))
	}
	for {
		if err := s.room(ctx); err != nil {
			return nil, fault.Interruptedf("wait for a session: %w", err)
		}
		began := time.Now()
		session, err := Dial(ctx, cfg)
		if err == nil {
			s.mu.Lock()
			s.open++
			s.mu.Unlock()
			return session, nil
		}
		open, again := s.lower(err, began)
		if !again {
			return nil, err
		}
		if open > 0 {
			s.log.Warn("the receiver refuses another session of the account, and gets them one after the other; set sessions of the credential to what it allows",
				"account", cfg.Account(), "err", err)
		}
	}
}

// room waits until another session may be opened.
func (s *Sessions) room(ctx context.Context) error {
	for {
		s.mu.Lock()
		now := time.Now()
		low, full := s.limit.low(now), s.open >= s.limit.at(now)
		wait, until := time.Until(s.ended.Add(s.settle)), s.limit.until
		s.mu.Unlock()
		switch {
		case full:
			var doubt <-chan time.Time // that it still lets in fewer: the session that is open may last for hours
			if low {
				doubt = time.After(time.Until(until))
			}
			select {
			case <-s.left:
			case <-doubt:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		case low && wait > 0:
			if err := backoff.Sleep(ctx, wait); err != nil {
				return err
			}
		default:
			return nil
		}
	}
}

// lower reports whether a log-in that began then and failed may succeed when one of
// the sessions that are open has ended, or when the receiver has noticed that the
// last one has, and how many are open. It keeps to that from then on. Servers that
// count say so in no common way: they close the connection, or refuse the log-in.
func (s *Sessions) lower(err error, began time.Time) (open int, again bool) {
	f := fault.Of(err)
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.Class != fault.Blocked || f.Reason != fault.Unreachable && f.Reason != fault.LogInRefused {
		return s.open, false
	}
	now := time.Now()
	if s.open > 0 {
		s.limit.lower(s.open, now)
		return s.open, true
	}
	after := began.Sub(s.ended) // below zero: it ended meanwhile
	if s.ended.IsZero() || after >= patience {
		return 0, false
	}
	s.settle = min(max(5*after, settling), patience)
	s.limit.lower(max(s.limit.at(now), 1), now)
	return 0, true
}

// end makes room.
func (s *Sessions) end() {
	s.mu.Lock()
	s.open--
	s.ended = time.Now()
	s.mu.Unlock()
	select {
	case s.left <- struct{}{}:
	default: // whoever waits looks anyway
	}
}

// limit is how many sessions may be open.
type limit struct {
	most    int
	lowered int
	until   time.Time // after which lowered is forgotten
}

func (l *limit) low(now time.Time) bool { return now.Before(l.until) }

func (l *limit) at(now time.Time) int {
	if l.low(now) {
		return min(l.most, l.lowered)
	}
	return l.most
}

func (l *limit) lower(to int, now time.Time) { l.lowered, l.until = to, now.Add(lowFor) }
