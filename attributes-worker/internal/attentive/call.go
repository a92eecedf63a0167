package attentive

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"strings"
	"time"

	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/tracing"
)

const (
	// answerBytes bounds what is read of an answer. A longer one costs its
	// connection.
	answerBytes = 64 << 10
	// longestWait caps what an answer may ask us to wait.
	longestWait = 15 * time.Minute
)

// call is one request and what to make of its answer.
type call struct {
	method, path string
	query        url.Values
	body         any // JSON; nil for none
	into         any // what the answer's body is decoded into; nil to ignore it
	secrets      []string
	// consent is a call whose effect must not be had twice: a status 2xx is
	// success even if the answer breaks off behind it.
	consent bool
	// done is a status that counts as success beside 2xx.
	done int
}

func (c call) operation() string { return c.method + " " + c.path }

// invalid is the error of a request that cannot be made.
func (c call) invalid(err error) error {
	return &fault.Error{
		Class:  fault.Permanent,
		Reason: fault.InvalidProfile,
		Err:    &callError{operation: c.operation(), err: err},
	}
}

// errTimeout is the cause when a call took longer than its time-out.
var errTimeout error = timeoutError{}

// timeoutError is a net.Error, so that it counts as a time-out wherever those of
// the network do.
type timeoutError struct{}

func (timeoutError) Error() string   { return "timed out" }
func (timeoutError) Timeout() bool   { return true }
func (timeoutError) Temporary() bool { return true }

// do makes a call in a span of its own. Its trace context stays with us: requests
// are exactly as published.
func (c *Client) do(ctx context.Context, request call) (result Result, err error) {
	ctx, span := tracing.Start(ctx, request.operation(), slog.String("server_address", c.base.Hostname()),
		slog.String("http_method", request.method), slog.String("http_path", request.path))
	defer func() {
		span.Add(slog.Int("http_status", result.Status))
		span.End(err)
	}()
	return c.exchange(ctx, request)
}

// exchange sends a request and reads its answer.
func (c *Client) exchange(ctx context.Context, request call) (Result, error) {
	req, err := c.request(request)
	if err != nil {
		return Result{}, err
	}
	timed, cancel := context.WithTimeoutCause(ctx, c.timeout, errTimeout)
	defer cancel()
	deadline, _ := timed.Deadline()
	exchange := &exchange{gate: func(write func() error) error {
		return c.gate(timed, func() error {
			if err := timed.Err(); err != nil {
				return err
			}
			// A process that was frozen may get here before the timer fires.
			if time.Now().After(deadline) {
				return context.DeadlineExceeded
			}
			return write()
		})
	}}
	req = req.WithContext(httptrace.WithClientTrace(timed, &httptrace.ClientTrace{
		GotConn:              func(info httptrace.GotConnInfo) { take(info.Conn, exchange) },
		GotFirstResponseByte: exchange.answered,
	}))

	resp, err := c.transport.RoundTrip(req)
	if err != nil {
		failed := &callError{operation: request.operation(), err: cause(timed, err), secrets: request.secrets}
		return Result{}, unanswered(ctx, exchange, failed)
	}
	body, readErr := io.ReadAll(io.LimitReader(resp.Body, answerBytes))
	// At the end of the body the connection goes back to the pool; before it, the
	// connection is closed. Neither error changes what the answer says.
	_ = resp.Body.Close()

	result := Result{Status: resp.StatusCode}
	result.Limit, result.Remaining = rateLimit(resp.Header)
	failed := &callError{operation: request.operation(), status: resp.StatusCode, sent: true}
	switch {
	case resp.StatusCode/100 == 2 && request.consent, resp.StatusCode == request.done:
		return result, nil
	case resp.StatusCode/100 != 2:
		failed.detail = scrub(body, request.secrets)
		return result, classify(failed, retryAfter(resp.Header, time.Now()))
	case readErr != nil && ctx.Err() != nil:
		failed.err = fmt.Errorf("read answer: %w", context.Cause(ctx))
		return result, &fault.Error{Class: fault.Interrupted, Err: failed}
	case readErr != nil:
		failed.err = fmt.Errorf("read answer: %w", cause(timed, readErr))
		return result, classify(failed, 0)
	case request.into != nil:
		if err := json.Unmarshal(body, request.into); err != nil {
			// The decoder's text may quote the body.
			failed.err = fmt.Errorf("answer of %d bytes is not the documented JSON", len(body))
			return result, classify(failed, 0)
		}
	}
	return result, nil
}

// request builds the request with the key of this moment.
func (c *Client) request(call call) (*http.Request, error) {
	key, err := c.key()
	if err == nil && strings.ContainsFunc(key, func(r rune) bool { return r <= ' ' || r > '~' }) || key == "" {
		err = cmp.Or(err, errors.New("empty, or not of visible ASCII characters"))
	}
	if err != nil {
		return nil, &fault.Error{
			Class: fault.Blocked, Scope: fault.ScopeAccount, Reason: fault.SecretMissing,
			Err: &callError{operation: call.operation(), err: fmt.Errorf("api key: %w", err)},
		}
	}
	target := c.base.JoinPath(call.path)
	target.RawQuery = call.query.Encode()
	req := &http.Request{
		Method: call.method,
		URL:    target,
		Host:   target.Host,
		Header: http.Header{
			"Authorization": {"Bearer " + key},
			"Accept":        {"application/json"},
			"User-Agent":    {"attentive-relay"},
		},
		// GetBody stays nil, and a request without a body has one that is empty
		// only when it is read: net/http repeats by itself what it can rewind.
		Body: io.NopCloser(io.LimitReader(nil, 0)),
	}
	if call.body != nil {
		body, err := encode(call.body)
		if err != nil {
			return nil, call.invalid(errors.New("not representable as JSON"))
		}
		req.Header.Set("Content-Type", "application/json")
		req.Body = io.NopCloser(bytes.NewReader(body))
		req.ContentLength = int64(len(body))
	}
	return req, nil
}

// unanswered completes and classifies the error of a request without an answer.
func unanswered(ctx context.Context, x *exchange, failed *callError) error {
	var refusal error
	failed.sent, refusal = x.close()
	if ctx.Err() != nil {
		failed.err = context.Cause(ctx)
		return &fault.Error{Class: fault.Interrupted, Err: failed}
	}
	if refusal != nil {
		failed.err = refusal
	}
	if given, ok := errors.AsType[*fault.Error](failed.err); ok {
		classified := *given
		classified.Err = failed
		return &classified
	}
	return classify(failed, 0)
}

// cause returns why err came about: our time-out instead of one of its symptoms.
func cause(timed context.Context, err error) error {
	if timed.Err() != nil {
		return context.Cause(timed)
	}
	return err
}

// rateLimit reads the headers of which every answer has a pair. A limit that is
// not a number counts as missing.
func rateLimit(h http.Header) (limit, remaining int) {
	limit, err := strconv.Atoi(strings.TrimSpace(h.Get("X-Ratelimit-Limit")))
	if err != nil || limit < 1 {
		return 0, 0
	}
	remaining, err = strconv.Atoi(strings.TrimSpace(h.Get("X-Ratelimit-Remaining")))
	if err != nil || remaining < 0 {
		return limit, 0
	}
	return limit, remaining
}

// retryAfter reads Retry-After in both its forms, seconds and date (RFC 9110,
// section 10.2.3): zero when it is missing, broken or past, never above
// longestWait. A date is compared with the server's own, where it states one.
func retryAfter(h http.Header, now time.Time) time.Duration {
	value := strings.TrimSpace(h.Get("Retry-After"))
	if seconds, err := strconv.ParseUint(value, 10, 64); err == nil {
		return time.Duration(min(seconds, uint64(longestWait/time.Second))) * time.Second
	}
	at, err := http.ParseTime(value)
	if err != nil {
		return 0
	}
	if date, err := http.ParseTime(h.Get("Date")); err == nil {
		now = date
	}
	return min(max(at.Sub(now), 0), longestWait)
}
