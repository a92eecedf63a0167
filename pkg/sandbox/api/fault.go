package api

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// Fault is one piece of misbehaviour: which calls it meets, and what happens to
// them. The first fault that meets a call is the only one for it.
//
// A fault that neither answers nor cuts only delays. Without Executed, a call
// that is answered or cut has no effect.
type Fault struct {
	// ID is given by AddFault.
	ID int `json:"id"`

	// Endpoint is met; empty means any.
	Endpoint Endpoint `json:"endpoint,omitempty"`
	// Identifier is met when the call names that phone, e-mail or other id;
	// empty means any call.
	Identifier string `json:"identifier,omitempty"`
	// Times is how many calls are met before the fault is over; 0 means no end.
	Times int `json:"times,omitempty"`
	// Probability of meeting a call that fits, from the server's seed; 0 means always.
	Probability float64 `json:"probability,omitempty"`

	// Delay passes before anything else. The call of a client that goes away
	// meanwhile has no effect, unless Late.
	Delay Duration `json:"delay,omitempty"`
	// Late lets the call take effect after Delay although its client is gone.
	Late bool `json:"late,omitempty"`
	// Executed lets the call take effect before Status or Cut.
	Executed bool `json:"executed,omitempty"`
	// Status is answered instead of the real one.
	Status int `json:"status,omitempty"`
	// RetryAfter is sent as that header, with Status.
	RetryAfter string `json:"retry_after,omitempty"`
	// Cut closes the connection without an answer.
	Cut bool `json:"cut,omitempty"`
}

// Duration is a time.Duration that is text, such as "250ms", in JSON.
type Duration time.Duration

// MarshalText returns the text of time.Duration.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText reads what time.ParseDuration reads.
func (d *Duration) UnmarshalText(text []byte) error {
	parsed, err := time.ParseDuration(string(text))
	*d = Duration(parsed)
	return err
}

func (f Fault) validate() error {
	var errs []error
	if f.Endpoint != "" && !f.Endpoint.exists() {
		errs = append(errs, fmt.Errorf("no endpoint %q", f.Endpoint))
	}
	if f.Times < 0 {
		errs = append(errs, fmt.Errorf("times %d is negative", f.Times))
	}
	if f.Probability < 0 || f.Probability > 1 {
		errs = append(errs, fmt.Errorf("probability %v is not between 0 and 1", f.Probability))
	}
	if f.Status != 0 && (f.Status < 200 || f.Status > 599) {
		errs = append(errs, fmt.Errorf("status %d is not between 200 and 599", f.Status))
	}
	if f.Delay < 0 {
		errs = append(errs, fmt.Errorf("delay %v is negative", time.Duration(f.Delay)))
	}
	if f.Status != 0 && f.Cut {
		errs = append(errs, errors.New("status and cut exclude each other"))
	}
	if f.Status == 0 && !f.Cut && f.Delay == 0 {
		errs = append(errs, errors.New("it does nothing: delay, status or cut is needed"))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("fault: %w", err)
	}
	return nil
}

// faultList holds the faults in force, oldest first.
type faultList struct {
	mu     sync.Mutex // guards all below
	random *rand.Rand
	last   int
	faults []*Fault
}

func newFaultList(seed uint64) *faultList {
	return &faultList{random: rand.New(rand.NewPCG(seed, 0))}
}

// meet returns the fault for a call, and uses it up once; the zero Fault when
// there is none.
func (l *faultList) meet(endpoint Endpoint, who []Identity) Fault {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, f := range l.faults {
		if f.Endpoint != "" && f.Endpoint != endpoint {
			continue
		}
		if f.Identifier != "" && !slices.ContainsFunc(who, func(id Identity) bool { return id.Value == f.Identifier }) {
			continue
		}
		if f.Probability > 0 && l.random.Float64() >= f.Probability {
			continue
		}
		met := *f
		if f.Times > 0 {
			if f.Times--; f.Times == 0 {
				l.faults = slices.Delete(l.faults, i, i+1)
			}
		}
		return met
	}
	return Fault{}
}

// AddFault puts f after those in force and returns its id.
func (s *Server) AddFault(f Fault) (int, error) {
	if err := f.validate(); err != nil {
		return 0, err
	}
	l := s.faults
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last++
	f.ID = l.last
	l.faults = append(l.faults, &f)
	return f.ID, nil
}

// Faults returns the faults in force; their Times are what is left.
func (s *Server) Faults() []Fault {
	s.faults.mu.Lock()
	defer s.faults.mu.Unlock()
	faults := make([]Fault, 0, len(s.faults.faults))
	for _, f := range s.faults.faults {
		faults = append(faults, *f)
	}
	return faults
}

// ClearFaults ends all faults.
func (s *Server) ClearFaults() {
	s.faults.mu.Lock()
	defer s.faults.mu.Unlock()
	s.faults.faults = nil
}
