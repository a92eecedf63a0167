package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"attentive.internal/pkg/sandbox/api"
	"attentive.internal/pkg/sandbox/ingest"
	"attentive.internal/pkg/sandbox/sftpd"
)

// routes are the views and verbs of the control address.
func (s *Sandbox) routes() http.Handler {
	mux := http.NewServeMux()
	for pattern, handle := range map[string]func(*http.Request) (any, error){
		"GET /_sandbox/subscribers":                       s.viewSubscribers,
		"GET /_sandbox/subscribers/stats":                 func(*http.Request) (any, error) { return s.api.Stats(), nil },
		"GET /_sandbox/subscribers/{identifier}":          s.viewSubscriber,
		"POST /_sandbox/subscribers/{identifier}/confirm": s.confirm,
		"GET /_sandbox/outbox":                            func(*http.Request) (any, error) { return s.api.Outbox(), nil },
		"GET /_sandbox/arrivals":                          func(*http.Request) (any, error) { return s.api.Arrivals(), nil },
		"GET /_sandbox/arrivals/summary":                  func(*http.Request) (any, error) { return s.api.Traffic(), nil },
		"GET /_sandbox/faults":                            func(*http.Request) (any, error) { return s.api.Faults(), nil },
		"POST /_sandbox/faults":                           s.addFault,
		"DELETE /_sandbox/faults":                         s.clearFaults,
		"GET /_sandbox/limits":                            func(*http.Request) (any, error) { return s.api.Limits(), nil },
		"PUT /_sandbox/limits":                            s.setLimits,
		"PUT /_sandbox/keys/{id}":                         s.changeKey,
		"GET /_sandbox/segments":                          func(*http.Request) (any, error) { return s.Segments(), nil },
		"GET /_sandbox/files":                             func(*http.Request) (any, error) { return s.files.Files(), nil },
		"GET /_sandbox/sftp":                              s.viewSFTP,
		"PUT /_sandbox/sftp":                              s.misbehave,
		"PUT /_sandbox/ingest":                            s.setPolicy,
		"PUT /_sandbox/bulk":                              s.setBulk,
	} {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			r.Body = http.MaxBytesReader(w, r.Body, 1<<20)
			view, err := handle(r)
			w.Header().Set("Content-Type", "application/json")
			if err != nil {
				view = map[string]string{"error": err.Error()}
				w.WriteHeader(statusOf(err))
			}
			encoder := json.NewEncoder(w)
			encoder.SetIndent("", "  ")
			_ = encoder.Encode(view) // a client that is gone is no failure
		})
	}
	return mux
}

// errNotFound marks what does not exist.
var errNotFound = errors.New("not found")

func statusOf(err error) int {
	if errors.Is(err, errNotFound) || errors.Is(err, api.ErrNoKey) {
		return http.StatusNotFound
	}
	return http.StatusBadRequest
}

// read reads a verb's body into v.
func read(r *http.Request, v any) error {
	decoder := json.NewDecoder(r.Body)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(v); err != nil {
		return fmt.Errorf("read body: %w", err)
	}
	return nil
}

// number reads a query parameter that is a number of at least zero.
func number(r *http.Request, name string, otherwise uint64) (uint64, error) {
	text := r.FormValue(name)
	if text == "" {
		return otherwise, nil
	}
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("parameter %s: %q is not a number", name, text)
	}
	return n, nil
}

func (s *Sandbox) viewSubscribers(r *http.Request) (any, error) {
	after, err := number(r, "after", 0)
	if err != nil {
		return nil, err
	}
	limit, err := number(r, "limit", 100)
	if err != nil {
		return nil, err
	}
	return s.api.Subscribers(after, int(min(limit, 1000))), nil
}

func (s *Sandbox) viewSubscriber(r *http.Request) (any, error) {
	p, ok := s.api.Subscriber(r.PathValue("identifier"))
	if !ok {
		return nil, fmt.Errorf("subscriber %q: %w", r.PathValue("identifier"), errNotFound)
	}
	return p, nil
}

func (s *Sandbox) confirm(r *http.Request) (any, error) {
	n, err := s.api.Confirm(r.PathValue("identifier"))
	return map[string]int{"confirmed": n}, err
}

func (s *Sandbox) addFault(r *http.Request) (any, error) {
	var f api.Fault
	if err := read(r, &f); err != nil {
		return nil, err
	}
	id, err := s.api.AddFault(f)
	return map[string]int{"id": id}, err
}

func (s *Sandbox) clearFaults(*http.Request) (any, error) {
	s.api.ClearFaults()
	return s.api.Faults(), nil
}

func (s *Sandbox) setLimits(r *http.Request) (any, error) {
	var limits map[api.Endpoint]int
	if err := read(r, &limits); err != nil {
		return nil, err
	}
	for endpoint, n := range limits {
		if err := s.api.SetLimit(endpoint, n); err != nil {
			return nil, err
		}
	}
	return s.api.Limits(), nil
}

// changeKey revokes or restores a key, or replaces its scopes.
func (s *Sandbox) changeKey(r *http.Request) (any, error) {
	var change struct {
		Revoked *bool    `json:"revoked"`
		Scopes  []string `json:"scopes"`
	}
	if err := read(r, &change); err != nil {
		return nil, err
	}
	id := r.PathValue("id")
	var err error
	switch {
	case change.Revoked == nil:
	case *change.Revoked:
		err = s.api.RevokeKey(id)
	default:
		err = s.api.RestoreKey(id)
	}
	if err == nil && change.Scopes != nil {
		err = s.api.SetScopes(id, change.Scopes...)
	}
	return change, err
}

// viewSFTP also shows what a sender needs to know.
func (s *Sandbox) viewSFTP(*http.Request) (any, error) {
	return map[string]any{
		"address": s.SFTPAddr(), "host_key": s.HostKey(), "pgp_key": s.PublicKey(),
		"stats": s.sftp.Stats(), "misbehaviour": s.sftp.Misbehaviour(),
	}, nil
}

func (s *Sandbox) misbehave(r *http.Request) (any, error) {
	var m sftpd.Misbehaviour
	if err := read(r, &m); err != nil {
		return nil, err
	}
	s.sftp.Misbehave(m)
	return m, nil
}

func (s *Sandbox) setPolicy(r *http.Request) (any, error) {
	var change struct {
		TakeAway bool `json:"take_away"`
	}
	if err := read(r, &change); err != nil {
		return nil, err
	}
	policy := ingest.Keep
	if change.TakeAway {
		policy = ingest.Take
	}
	s.files.SetPolicy(policy)
	return change, nil
}

func (s *Sandbox) setBulk(r *http.Request) (any, error) {
	var policy api.BulkPolicy
	if err := read(r, &policy); err != nil {
		return nil, err
	}
	return policy, s.api.SetBulk(policy)
}
