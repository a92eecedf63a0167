// Package fault says what a failure means for the work that met it.
//
// An error is classified once, by the adapter that spoke to the network, the
// disk or the broker; everything above obeys the class and never looks at the
// text. An error without a class is Retryable: trying again is safe because a
// retry budget bounds it. The classes and reasons are closed lists, here.
package fault

import (
	"errors"
	"fmt"
	"time"
)

// Class says what to do with the work that failed.
type Class uint8

const (
	// Retryable work is tried again in place, within its retry budget.
	Retryable Class = iota
	// Permanent work is dead-lettered: trying again cannot fix it.
	Permanent
	// Blocked work waits, and counts no attempt: what it needs is broken.
	Blocked
	// Interrupted work was cut short by us (stopping, or ownership lost) and
	// counts no attempt.
	Interrupted
)

// Classes lists every class, for labels.
func Classes() []Class { return []Class{Retryable, Permanent, Blocked, Interrupted} }

// String returns the name used in logs and labels.
func (c Class) String() string {
	switch c {
	case Retryable:
		return "retryable"
	case Permanent:
		return "permanent"
	case Blocked:
		return "blocked"
	case Interrupted:
		return "interrupted"
	}
	return fmt.Sprintf("class(%d)", uint8(c))
}

// Scope says how far a block reaches.
type Scope string

const (
	// ScopeAccount stops everything that uses the credential's account.
	ScopeAccount Scope = "account"
	// ScopeEndpoint stops one endpoint (class of calls) of the account.
	ScopeEndpoint Scope = "endpoint"
	// ScopeDestination stops one destination.
	ScopeDestination Scope = "destination"
)

// Scopes lists every scope, for labels.
func Scopes() []Scope { return []Scope{ScopeAccount, ScopeEndpoint, ScopeDestination} }

// Error is an error with its consequence. The zero Class is Retryable.
type Error struct {
	Class Class
	// Scope is set when Class is Blocked.
	Scope Scope
	// Reason is set when Class is Permanent or Blocked.
	Reason Reason
	// Wait is how long the other side asked us to wait; zero when it did not.
	Wait time.Duration
	// Err names the operation and its input, never personal data.
	Err error
}

// Error returns the text of Err.
func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns Err.
func (e *Error) Unwrap() error { return e.Err }

// Permanentf returns a Permanent error. The format is that of fmt.Errorf.
func Permanentf(reason Reason, format string, args ...any) error {
	return &Error{Class: Permanent, Reason: reason, Err: fmt.Errorf(format, args...)}
}

// Blockedf returns a Blocked error. The format is that of fmt.Errorf.
func Blockedf(scope Scope, reason Reason, format string, args ...any) error {
	return &Error{Class: Blocked, Scope: scope, Reason: reason, Err: fmt.Errorf(format, args...)}
}

// Interruptedf returns an Interrupted error. The format is that of fmt.Errorf.
func Interruptedf(format string, args ...any) error {
	return &Error{Class: Interrupted, Err: fmt.Errorf(format, args...)}
}

// Of returns the classified error in err's chain; for an error without one it
// returns a Retryable wrapping of err. Of(nil) is nil.
func Of(err error) *Error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	return &Error{Err: err}
}

// ClassOf returns the class of err: Retryable when nothing in the chain says.
func ClassOf(err error) Class {
	if err == nil {
		return Retryable
	}
	return Of(err).Class
}
