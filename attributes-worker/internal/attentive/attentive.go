// Package attentive speaks the calls of Attentive's API that the worker makes:
// GET /v1/me, POST /v1/attributes/custom, POST /v1/subscriptions,
// POST /v1/subscriptions/unsubscribe, GET /v1/subscriptions,
// POST /v2/bulk/user/attributes and GET /v2/bulk/job/{id}.
//
// One method call is at most one request on the wire. Nothing is retried,
// redirected or compressed here, nor by net/http below: a repeated subscribe
// texts a person again, and a repeated request is one that no limiter counted.
//
// Every error is a *fault.Error with the class that DESIGN's table of answers
// gives it, and holds no personal data. Two questions remain that the class does
// not answer: [Throttled], because a refusal for coming too soon is no attempt,
// and [OutcomeKnown], because a subscribe or unsubscribe whose outcome is not
// known must not simply be made again.
//
// Source of paths and bodies: Attentive's OpenAPI texts (Access Token
// Subscribers, Custom Attributes, Bulk User Operations, Bulk Status and Test
// Authentication API, version 1.0).
package attentive

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"attentive.internal/pkg/fault"
)

// DefaultTimeout is the time-out of a call, from connecting to the last byte of
// the answer.
const DefaultTimeout = 5 * time.Second

// Config says how to reach the API.
type Config struct {
	// BaseURL is scheme and host, without the version: https://api.attentivemobile.com.
	BaseURL string
	// Key returns the API key. It is asked for each request, so a key that is
	// exchanged needs no restart. Its error blocks the account (secret_missing).
	Key func() (string, error)
	// Timeout of one call; zero means DefaultTimeout.
	Timeout time.Duration
	// Connections kept open between calls; zero means 64. It should be the
	// number of calls that are under way together.
	Connections int
	// Fence returns a connection that ends when its account is no longer ours
	// (Conn of owner.Tenure); nil for none. What it refuses counts as unsent, and
	// a *fault.Error of it keeps its class.
	Fence func(net.Conn) net.Conn
}

// Client makes calls with one API key. Its methods may be called concurrently.
type Client struct {
	base      *url.URL
	key       func() (string, error)
	timeout   time.Duration
	transport *http.Transport
	gate      Gate
}

// Gate stands before the first byte of a request: it calls write once and
// returns its error, or returns an error without calling it. In the second case
// the request is not sent, and its outcome is known. It must return when ctx
// ends. A limiter's Do is one; that enough lease is left for the call belongs into
// another. A *fault.Error of the gate keeps its class.
type Gate func(ctx context.Context, write func() error) error

// New returns a Client. It does not connect.
func New(cfg Config) (*Client, error) {
	base, err := url.Parse(cfg.BaseURL)
	if err != nil {
		return nil, fmt.Errorf("base url %q: %w", cfg.BaseURL, err)
	}
	if base.Host == "" || (base.Scheme != "https" && base.Scheme != "http") {
		return nil, fmt.Errorf("base url %q: want https://HOST", cfg.BaseURL)
	}
	base.Path = strings.TrimSuffix(base.Path, "/") + "/" // JoinPath makes no absolute path of an empty one
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultTimeout
	}
	if cfg.Connections == 0 {
		cfg.Connections = 64
	}
	return &Client{
		base:      base,
		key:       cfg.Key,
		timeout:   cfg.Timeout,
		transport: newTransport(cfg),
		gate:      func(_ context.Context, write func() error) error { return write() },
	}, nil
}

// Through returns a Client whose requests pass gate. It shares the connections
// of c.
func (c *Client) Through(gate Gate) *Client {
	through := *c
	through.gate = gate
	return &through
}

// Close closes the connections that no call uses.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// Result is what an answer says beside its body. Without an answer it is zero.
type Result struct {
	// Status is the HTTP status.
	Status int
	// Limit and Remaining are what x-ratelimit-limit and x-ratelimit-remaining
	// say; a Limit of zero means that they were missing.
	Limit, Remaining int
}

// Throttled reports whether err is an answer 429: the call was refused for
// coming too soon. It counts no attempt.
func Throttled(err error) bool {
	e, ok := errors.AsType[*callError](err)
	return ok && e.status == http.StatusTooManyRequests
}

// OutcomeKnown reports whether a call that returned err is known to have had its
// effect (err is nil) or to have had none: the API refused it with an answer
// that is documented to mean so, or no byte of it was sent.
//
// An error that did not come from this package says nothing: not known.
func OutcomeKnown(err error) bool {
	if err == nil {
		return true
	}
	e, ok := errors.AsType[*callError](err)
	return ok && (!e.sent || refused(e.status))
}

// Refusal returns what an answer says with which the API refused a call for good,
// and whether err is one. Calls that were refused for the same reason are told
// the same, as far as the API does not quote what it was sent.
func Refusal(err error) (words string, refused bool) {
	e, ok := errors.AsType[*callError](err)
	if !ok || e.status == 0 || fault.ClassOf(err) != fault.Permanent {
		return "", false
	}
	return e.Error(), true
}

// refused lists the answers after which a call had no effect. The first line is
// what the API documents, 409 included, the second what HTTP defines as refused
// before it was carried out.
func refused(status int) bool {
	switch status {
	case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusConflict,
		http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity, http.StatusTooManyRequests:
		return true
	}
	return false
}

// callError is what is known of a call that failed.
type callError struct {
	operation string   // method and path
	status    int      // zero without an answer
	sent      bool     // some of the request may have left
	detail    string   // the answer's body, scrubbed
	err       error    // without an answer, or when it could not be read
	secrets   []string // what err's text may not show
}

func (e *callError) Error() string {
	switch {
	case e.err != nil:
		return e.operation + ": " + hide(e.err.Error(), e.secrets)
	case e.detail == "":
		return fmt.Sprintf("%s: status %d", e.operation, e.status)
	}
	return fmt.Sprintf("%s: status %d: %s", e.operation, e.status, e.detail)
}

func (e *callError) Unwrap() error { return e.err }

// classify gives a failed call its consequence. wait is what the answer asked
// for.
func classify(e *callError, wait time.Duration) error {
	f := &fault.Error{Err: e}
	switch s := e.status; {
	case s == http.StatusUnauthorized:
		f.Class, f.Scope, f.Reason = fault.Blocked, fault.ScopeAccount, fault.LogInRefused
	case s == http.StatusForbidden:
		f.Class, f.Scope, f.Reason = fault.Blocked, fault.ScopeEndpoint, fault.ScopeMissing
	case s == http.StatusRequestTimeout, s == http.StatusTooManyRequests, s/100 == 5:
		f.Wait = wait
	case s/100 == 4:
		f.Class, f.Reason = fault.Permanent, fault.Rejected
	}
	return f
}
