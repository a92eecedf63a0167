package fault_test

import (
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"testing"
	"time"

	"attentive.internal/pkg/fault"
)

func TestOfFindsTheClassInTheChain(t *testing.T) {
	t.Parallel()
	blocked := fault.Blockedf(fault.ScopeAccount, fault.LogInRefused, "log in: %w", io.ErrUnexpectedEOF)
	tests := []struct {
		name   string
		err    error
		class  fault.Class
		reason fault.Reason
	}{
		{"without a class", io.ErrClosedPipe, fault.Retryable, ""},
		{"permanent", fault.Permanentf(fault.Rejected, "status %d", 400), fault.Permanent, fault.Rejected},
		{"interrupted", fault.Interruptedf("stopping"), fault.Interrupted, ""},
		{"wrapped", fmt.Errorf("job 7: %w", blocked), fault.Blocked, fault.LogInRefused},
		{"joined", errors.Join(io.ErrClosedPipe, blocked), fault.Blocked, fault.LogInRefused},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := fault.Of(tt.err)
			if got.Class != tt.class || got.Reason != tt.reason {
				t.Errorf("Of = %v, %q; want %v, %q", got.Class, got.Reason, tt.class, tt.reason)
			}
			if fault.ClassOf(tt.err) != tt.class {
				t.Errorf("ClassOf = %v, want %v", fault.ClassOf(tt.err), tt.class)
			}
		})
	}
}

func TestOfNothingIsNothing(t *testing.T) {
	t.Parallel()
	if got := fault.Of(nil); got != nil {
		t.Errorf("Of(nil) = %v", got)
	}
}

func TestErrorIsItsCause(t *testing.T) {
	t.Parallel()
	err := fault.Blockedf(fault.ScopeDestination, fault.StorageFull, "put: %w", io.ErrShortWrite)
	if !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("%v does not wrap its cause", err)
	}
	if got, want := err.Error(), "put: short write"; got != want {
		t.Errorf("text = %q, want %q", got, want)
	}
	retry := &fault.Error{Wait: time.Minute, Err: io.EOF}
	if got := fault.Of(fmt.Errorf("call: %w", retry)); got.Wait != time.Minute {
		t.Errorf("wait = %v, want 1m", got.Wait)
	}
}

// TestListsAreClosed keeps the lists fit for labels: no value twice, none that
// is not a plain word, none that is in both.
func TestListsAreClosed(t *testing.T) {
	t.Parallel()
	word := regexp.MustCompile(`^[a-z]+(_[a-z]+)*$`)
	var values []string
	for _, r := range slices.Concat(fault.DeadLetterReasons(), fault.BlockReasons()) {
		values = append(values, string(r))
	}
	for _, c := range fault.Classes() {
		values = append(values, c.String())
	}
	for _, s := range fault.Scopes() {
		values = append(values, string(s))
	}
	slices.Sort(values)
	for i, v := range values {
		if !word.MatchString(v) {
			t.Errorf("%q is not a plain word", v)
		}
		if i > 0 && values[i-1] == v {
			t.Errorf("%q is there twice", v)
		}
	}
}
