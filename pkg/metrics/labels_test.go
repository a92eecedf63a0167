package metrics

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"testing"

	"attentive.internal/pkg/fault"
)

// timeoutError is a net.Error of the kind that dialling returns.
type timeoutError struct{ timeout bool }

func (e timeoutError) Error() string   { return "dial" }
func (e timeoutError) Timeout() bool   { return e.timeout }
func (e timeoutError) Temporary() bool { return false }

func TestCodeOf(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		status int
		err    error
		want   Code
	}{
		{"ok", 200, nil, "2xx"},
		{"accepted", 202, nil, "2xx"},
		{"switching protocols", 101, nil, "1xx"},
		{"redirect", 307, nil, "3xx"},
		{"bad request", 400, nil, "400"},
		{"unauthorized", 401, nil, "401"},
		{"forbidden", 403, nil, "403"},
		{"not found", 404, nil, "404"},
		{"request timeout", 408, nil, "408"},
		{"conflict", 409, nil, "409"},
		{"too large", 413, nil, "413"},
		{"unprocessable", 422, nil, "422"},
		{"too many", 429, nil, "429"},
		{"another refusal", 418, nil, "4xx"},
		{"server error", 500, nil, "5xx"},
		{"bad gateway", 502, nil, "5xx"},
		{"no status of HTTP", 999, nil, Network},
		{"no status", 0, nil, Network},
		{"deadline", 0, fmt.Errorf("post: %w", context.DeadlineExceeded), Timeout},
		{"dial timeout", 0, fmt.Errorf("post: %w", &net.OpError{Op: "dial", Err: timeoutError{true}}), Timeout},
		{"refused", 0, fmt.Errorf("post: %w", &net.OpError{Op: "dial", Err: timeoutError{false}}), Network},
		{"cut after the status line", 200, io.ErrUnexpectedEOF, Network},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := CodeOf(tt.status, tt.err); got != tt.want {
				t.Errorf("CodeOf(%d, %v) = %q, want %q", tt.status, tt.err, got, tt.want)
			}
		})
	}
}

// TestCodesAreClosed tries every status there is, and some that there are not.
func TestCodesAreClosed(t *testing.T) {
	t.Parallel()
	for status := -1; status < 1100; status++ {
		if code := CodeOf(status, nil); !slices.Contains(codes(), code) {
			t.Errorf("CodeOf(%d) = %q, which New does not create", status, code)
		}
	}
}

func TestClassOf(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		err  error
		want string
	}{
		{"success", nil, "done"},
		{"unclassified", errors.New("eof"), "retryable"},
		{"permanent", fault.Permanentf(fault.Rejected, "status 400"), "permanent"},
		{"blocked", fmt.Errorf("job: %w", fault.Blockedf(fault.ScopeAccount, fault.LogInRefused, "401")), "blocked"},
		{"interrupted", fault.Interruptedf("stopping"), "interrupted"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := classOf(tt.err)
			if got != tt.want {
				t.Errorf("classOf(%v) = %q, want %q", tt.err, got, tt.want)
			}
			if !slices.Contains(classes(), got) {
				t.Errorf("classOf(%v) = %q, which New does not create", tt.err, got)
			}
		})
	}
}
