package broker

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"

	"github.com/nats-io/nats.go"
)

// ErrForbidden is returned by Store, and for other requests (see
// [Conn.UnlessForbidden]), when the broker does not let this user publish to the
// subject. Nothing was stored.
var ErrForbidden = errors.New("the broker's permissions forbid it")

// asking is one request that waits for its answer.
type asking struct {
	subjects []string
	cancel   context.CancelCauseFunc
}

// UnlessForbidden returns a context for requests to the subjects, which ends with
// ErrForbidden as its cause when the broker refuses one. The broker says so apart
// from the request, which nobody answers. done is called when the request is over.
func (c *Conn) UnlessForbidden(ctx context.Context, subjects ...string) (_ context.Context, done func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	a := &asking{subjects, cancel}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asking[a] = struct{}{}
	return ctx, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.asking, a)
		cancel(nil)
	}
}

// forbidden finds the subject in the server's words, the only place it is in.
func forbidden(err error) (subject string, ok bool) {
	if !errors.Is(err, nats.ErrPermissionViolation) {
		return "", false
	}
	m := regexp.MustCompile(`(?i)publish to "([^"]+)"`).FindStringSubmatch(err.Error())
	if m == nil {
		return "", false
	}
	return m[1], true
}

// forbid ends the requests whose subject err says is forbidden.
func (c *Conn) forbid(err error) {
	subject, ok := forbidden(err)
	if !ok {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for a := range c.asking {
		if slices.Contains(a.subjects, subject) {
			a.cancel(fmt.Errorf("%w: have the user of broker.credentials allowed to publish to it", ErrForbidden))
		}
	}
}
