package api

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// maxBodyBytes is the longest body that is read.
const maxBodyBytes = 1 << 20

// answer is how a call ends. Status 0 cuts the connection.
type answer struct {
	status   int
	body     any
	executed bool
}

// problem is an answer that is not a success.
func problem(status int, text string) answer {
	return answer{status: status, body: map[string]any{"code": status, "message": text}}
}

// ServeHTTP answers one call.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	at := time.Now()
	if id, ok := strings.CutPrefix(r.URL.Path, resultPath); ok && r.Method == http.MethodGet {
		s.serveResult(w, strings.TrimSuffix(id, ".jsonl"))
		return
	}
	endpoint := endpointOf(r)
	if !endpoint.exists() {
		write(w, problem(http.StatusNotFound, "The specified resource was not found"))
		return
	}
	longest := int64(maxBodyBytes)
	if endpoint == BulkAttributes {
		longest = maxBulkBytes
	}
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, longest))
	q := readRequest(endpoint, r, raw)
	key, known := s.keys.find(r.Header.Get("Authorization"))
	if !known {
		key = Key{}
	}
	c := caller{endpoint, key.ID}
	q.arrival = s.arrivals.add(Arrival{
		At: at, Endpoint: endpoint, Key: key.ID, Body: sha256.Sum256(raw), Who: q.who, Attributes: texts(q.attributes), Users: users(q.users),
	})

	limit, remaining, inTime := s.limits.take(c)
	w.Header().Set("x-ratelimit-limit", strconv.Itoa(limit))
	w.Header().Set("x-ratelimit-remaining", strconv.Itoa(remaining))
	fault := s.faults.meet(endpoint, q.who)
	a := s.meet(r.Context(), fault, func() answer {
		switch {
		case !known:
			return problem(http.StatusUnauthorized, "Unauthorized")
		case !inTime:
			return problem(http.StatusTooManyRequests, "Too many requests in a given amount of time")
		case !endpoint.permits(key.Scopes):
			return problem(http.StatusForbidden, "Access Denied")
		case err != nil:
			return unread(err)
		case len(q.problems) > 0:
			return problem(http.StatusBadRequest, strings.Join(q.problems, "; "))
		}
		return s.execute(endpoint, key, q)
	})
	s.arrivals.answered(q.arrival, c, a)
	s.log.Debug("call answered", "endpoint", endpoint, "key", key.ID, "status", a.status, "executed", a.executed, "duration", time.Since(at))
	if a.status == 0 {
		panic(http.ErrAbortHandler) // net/http's way to close without an answer
	}
	if fault.Status != 0 && fault.RetryAfter != "" {
		w.Header().Set("Retry-After", fault.RetryAfter)
	}
	write(w, a)
}

// meet runs call as the fault lets it.
func (s *Server) meet(ctx context.Context, f Fault, call func() answer) answer {
	if f.Delay > 0 && !s.wait(ctx, f) {
		return answer{}
	}
	if f.Status == 0 && !f.Cut {
		return call()
	}
	var a answer
	if f.Executed {
		a = call()
	}
	executed := a.executed
	if f.Cut {
		return answer{executed: executed}
	}
	a = problem(f.Status, http.StatusText(f.Status))
	a.executed = executed
	return a
}

// wait lets the fault's delay pass, and says whether the call goes on.
func (s *Server) wait(ctx context.Context, f Fault) bool {
	timer := time.NewTimer(time.Duration(f.Delay))
	defer timer.Stop()
	gone := ctx.Done()
	if f.Late {
		gone = nil
	}
	select {
	case <-timer.C:
		return true
	case <-gone:
	case <-s.stopping:
	}
	return false
}

// unread is the answer to a body that could not be read.
func unread(err error) answer {
	if long, tooLong := errors.AsType[*http.MaxBytesError](err); tooLong {
		return problem(http.StatusRequestEntityTooLarge, fmt.Sprintf("the body is longer than %d MiB", long.Limit>>20))
	}
	return problem(http.StatusBadRequest, "the body could not be read")
}

// execute lets a checked call take effect.
func (s *Server) execute(endpoint Endpoint, key Key, q request) answer {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch endpoint {
	case SetAttributes:
		return s.setAttributes(q)
	case GetAttributes:
		return s.getAttributes(q)
	case Subscribe:
		return s.subscribe(q)
	case GetSubscriptions:
		return s.getSubscriptions(q)
	case Unsubscribe:
		return s.unsubscribe(q)
	case BulkAttributes:
		return s.acceptBulk(q)
	case BulkStatus:
		return s.bulkStatus(q)
	}
	return key.me()
}

func (s *Server) setAttributes(q request) answer {
	if text := s.state.refuse(q.attributes); text != "" {
		return problem(http.StatusBadRequest, text)
	}
	if !s.state.reachable(q.who) {
		return problem(http.StatusNotFound, "no subscriber has this external identifier; it must first be associated with a phone or email")
	}
	if _, err := s.happen(event{Op: opAttributes, Who: q.who, Attributes: q.attributes}); err != nil {
		return s.broken(err)
	}
	return answer{status: http.StatusOK, body: struct{}{}, executed: true}
}

func (s *Server) subscribe(q request) answer {
	kind, text := s.resolve(q)
	if text != "" {
		return problem(http.StatusBadRequest, text)
	}
	outcomes, err := s.happen(event{
		Op: opSubscribe, Who: q.who, Type: kind, Single: q.single, Confirmed: s.cfg.AutoConfirm && !q.single,
	})
	if err != nil {
		return s.broken(err)
	}
	body := consented(q, outcomes, "subscriptionCreationStatus", "CREATED")
	if q.external != nil {
		body["externalIdentifiers"] = q.external
	}
	return answer{status: http.StatusAccepted, body: body, executed: true}
}

func (s *Server) unsubscribe(q request) answer {
	outcomes, err := s.happen(event{Op: opUnsubscribe, Who: q.who, Subscriptions: q.subscriptions, Silent: q.silent})
	if err != nil {
		return s.broken(err)
	}
	body := consented(q, outcomes, "subscriptionUnsubscribeStatus", "UNSUBSCRIBED")
	return answer{status: http.StatusAccepted, body: body, executed: true}
}

// consented is the body of an accepted subscribe or unsubscribe call: each
// subscription with a field that says whether it changed.
func consented(q request, outcomes []outcome, field, changed string) map[string]any {
	responses := make([]any, 0, len(outcomes))
	for _, o := range outcomes {
		status := "PREVIOUSLY_" + changed
		if o.newly {
			status = "NEWLY_" + changed
		}
		responses = append(responses, map[string]any{"subscription": o.Subscription, field: status})
	}
	return map[string]any{"user": q.user, "subscriptionResponses": responses}
}

// happen writes an event to the journal and applies it. Server.mu is held.
func (s *Server) happen(e event) ([]outcome, error) {
	e.At = time.Now().UTC()
	if err := s.journal.Append(e); err != nil {
		return nil, err
	}
	return s.state.apply(e), nil
}

// broken is the answer when the sandbox itself fails.
func (s *Server) broken(err error) answer {
	s.log.Error("call not written to the journal", "err", err)
	return problem(http.StatusInternalServerError, "Internal Server Error")
}

func (s *Server) getAttributes(q request) answer {
	p := s.state.find(q.who[0])
	if p == nil {
		return problem(http.StatusNotFound, "The specified resource was not found")
	}
	list := make([]map[string]string, 0, len(p.attributes))
	for _, v := range p.attributes {
		list = append(list, map[string]string{"name": v.kind.name, "value": v.text})
	}
	return answer{status: http.StatusOK, body: list}
}

func (s *Server) getSubscriptions(q request) answer {
	p := s.state.find(q.who[0])
	if p == nil {
		return problem(http.StatusNotFound, "The specified resource was not found")
	}
	list := make([]any, 0, len(p.subscriptions))
	for _, sub := range p.subscriptions {
		if sub.status != Pending {
			list = append(list, map[string]any{
				"subscription": sub.Subscription,
				"eligibility":  map[string]bool{"isEligible": sub.status == Active},
			})
		}
	}
	return answer{status: http.StatusOK, body: map[string]any{"subscriptionEligibilities": list}}
}

// write sends an answer. A client that is gone is no failure.
func write(w http.ResponseWriter, a answer) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(a.status)
	_ = json.NewEncoder(w).Encode(a.body)
}

// texts returns attributes as text by name.
func texts(values []scalar) map[string]string {
	if len(values) == 0 {
		return nil
	}
	m := make(map[string]string, len(values))
	for _, v := range values {
		m[v.Name] = v.Text
	}
	return m
}
