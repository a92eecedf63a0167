package dispatch

import (
	"fmt"
	"sync"
	"time"

	"attentive.internal/pkg/fault"
)

// An endpoint is blocked when it has given no answer but failures to so many
// calls, over so long.
const (
	outageCalls = 10
	outageTime  = 30 * time.Second
)

// outage notices that an endpoint does not answer any more. Its methods may be
// called concurrently.
type outage struct {
	mu    sync.Mutex // guards what follows
	calls int        // that failed since the last that did not
	first time.Time  // of these
}

// answered notes a call that got an answer, whatever it says.
func (o *outage) answered() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.calls = 0
}

// failed notes a call that failed with err, and returns what blocks the endpoint
// when too many have in a row.
func (o *outage) failed(err error) *fault.Error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.calls == 0 {
		o.first = time.Now()
	}
	o.calls++
	lasted := time.Since(o.first)
	if o.calls < outageCalls || lasted < outageTime {
		return nil
	}
	return &fault.Error{
		Class: fault.Blocked, Scope: fault.ScopeEndpoint, Reason: fault.Unreachable,
		Err: fmt.Errorf("none of %d calls in %v succeeded, the last: %w", o.calls, lasted.Round(time.Second), err),
	}
}

// suspected reports whether so many calls in a row have failed that it is hardly
// the profiles' fault, even if they have not done so for long.
func (o *outage) suspected() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.calls >= outageCalls
}
