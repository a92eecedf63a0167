// Package api plays Attentive's HTTP API: custom attributes, one by one and in
// bulk, subscriptions and /v1/me, with the checks, scopes, limits and answers that
// Attentive publishes, and the subscribers that follow from the calls.
//
// The order of one call: it is recorded on arrival; it takes a place in the
// sliding second of its key and endpoint; a scripted fault may delay, answer or
// cut it; key, rate, scope and body are checked; then it takes effect, which is
// written to the journal before anything answers 2xx. What the published text
// leaves open is decided in the README of pkg/sandbox.
package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"attentive.internal/pkg/sandbox/journal"
	"golang.org/x/sync/errgroup"
)

// Endpoint is a call of the API: method and path.
type Endpoint string

// The calls the sandbox answers. Any other is a 404.
const (
	SetAttributes    Endpoint = "POST /v1/attributes/custom"
	GetAttributes    Endpoint = "GET /v1/attributes/custom"
	Subscribe        Endpoint = "POST /v1/subscriptions"
	GetSubscriptions Endpoint = "GET /v1/subscriptions"
	Unsubscribe      Endpoint = "POST /v1/subscriptions/unsubscribe"
	Me               Endpoint = "GET /v1/me"
	BulkAttributes   Endpoint = "POST /v2/bulk/user/attributes"
	BulkStatus       Endpoint = "GET /v2/bulk/job/{id}"
)

// Scopes of a key. ScopeSubscriptions includes ScopeReadSubscriptions: Attentive
// describes it as "read and write subscriptions".
const (
	ScopeAttributes        = "attributes:write"
	ScopeSubscriptions     = "subscriptions:write"
	ScopeReadSubscriptions = "subscriptions:read"
)

// publishedLimits are the calls per second and key.
func publishedLimits() map[Endpoint]int {
	return map[Endpoint]int{
		SetAttributes: 150, GetAttributes: 150, Subscribe: 10, GetSubscriptions: 150, Unsubscribe: 5, Me: 150,
		BulkAttributes: 100, BulkStatus: 100,
	}
}

// exists says whether the API has that endpoint.
func (e Endpoint) exists() bool {
	switch e {
	case SetAttributes, GetAttributes, Subscribe, GetSubscriptions, Unsubscribe, Me, BulkAttributes, BulkStatus:
		return true
	}
	return false
}

// endpointOf returns the endpoint that a request calls.
func endpointOf(r *http.Request) Endpoint {
	if r.Method == http.MethodGet && strings.HasPrefix(r.URL.Path, bulkPath) {
		return BulkStatus
	}
	return Endpoint(r.Method + " " + r.URL.Path)
}

// permits says whether a key with these scopes may call the endpoint.
func (e Endpoint) permits(scopes []string) bool {
	switch e {
	case SetAttributes, GetAttributes:
		return slices.Contains(scopes, ScopeAttributes)
	case Subscribe, Unsubscribe:
		return slices.Contains(scopes, ScopeSubscriptions)
	case BulkAttributes:
		return slices.Contains(scopes, ScopeAttributes) && slices.Contains(scopes, ScopeSubscriptions)
	case GetSubscriptions:
		return slices.Contains(scopes, ScopeReadSubscriptions) || slices.Contains(scopes, ScopeSubscriptions)
	}
	return true
}

// Key is an API key. An empty ID becomes key-1, key-2, ... by its place in the list.
type Key struct {
	ID     string   `json:"id"`
	Token  string   `json:"-"`
	Scopes []string `json:"scopes"`
	// Company that GET /v1/me tells. Default "Sandbox". All companies have the same
	// subscribers.
	Company string `json:"company"`
}

// SignUpUnit is what a subscribe call names, or finds by locale and type.
type SignUpUnit struct {
	ID       string `json:"id"`
	Inactive bool   `json:"inactive,omitempty"`
	// Type defaults to MARKETING.
	Type string `json:"type"`
	// Language and Country default to en and US.
	Language string `json:"language"`
	Country  string `json:"country"`
}

// Attribute is an attribute created in Attentive's own pages: only the values
// listed are accepted. Without values it only has its type fixed.
type Attribute struct {
	Name   string        `json:"name"`
	Type   AttributeType `json:"type"`
	Values []string      `json:"values,omitempty"`
}

// Config is what a Server needs. Zero means the default.
type Config struct {
	// Journal is the file that keeps the subscribers. Required.
	Journal string
	Keys    []Key
	Units   []SignUpUnit
	// Attributes that exist before the first call.
	Attributes []Attribute
	// Limits per key and second; an endpoint not named has the published one.
	Limits map[Endpoint]int
	// AutoConfirm answers "Y" at once for everybody who is asked to.
	AutoConfirm bool
	// ArrivalLog is how many arrivals, and ten times as many texts, are kept one
	// by one; older ones are only counted. Default 10,000; negative keeps none.
	ArrivalLog int
	// Seed makes faults with a probability, and how long batches take, repeatable.
	Seed uint64
	// Log gets one debug line per call. Default: none.
	Log *slog.Logger
}

// Server is the API and its subscribers. Its methods may be called concurrently.
type Server struct {
	cfg      Config
	log      *slog.Logger
	journal  *journal.Journal
	units    []SignUpUnit
	keys     *keyring
	limits   *limiter
	faults   *faultList
	arrivals *arrivalLog
	started  time.Time
	stopping chan struct{} // closed by Serve when it ends: no call waits any longer

	mu    sync.Mutex // guards state and bulk, and the order of the journal
	state *state
	bulk  bulkState
}

// Open reads the journal and returns a Server that serves nothing yet. It must
// be closed.
func Open(cfg Config) (*Server, error) {
	if cfg.Journal == "" {
		return nil, errors.New("open sandbox api: no journal file given")
	}
	keys, err := newKeyring(cfg.Keys)
	if err != nil {
		return nil, fmt.Errorf("open sandbox api: %w", err)
	}
	units, err := completeUnits(cfg.Units)
	if err != nil {
		return nil, fmt.Errorf("open sandbox api: %w", err)
	}
	for endpoint := range cfg.Limits {
		if !endpoint.exists() {
			return nil, fmt.Errorf("open sandbox api: limit of %q: there is no such endpoint", endpoint)
		}
	}
	if cfg.ArrivalLog == 0 {
		cfg.ArrivalLog = 10_000
	}
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		cfg: cfg, log: log, units: units, keys: keys,
		limits:   newLimiter(cfg.Limits),
		faults:   newFaultList(cfg.Seed),
		arrivals: newArrivalLog(cfg.ArrivalLog),
		started:  time.Now(),
		stopping: make(chan struct{}),
		state:    newState(cfg.Attributes, 10*cfg.ArrivalLog),
		bulk:     bulkState{policy: defaultBulkPolicy(), random: rand.New(rand.NewPCG(cfg.Seed, 1)), jobs: make(map[string]*bulkJob)},
	}
	if s.journal, err = journal.Open(cfg.Journal, s.state.replay); err != nil {
		return nil, fmt.Errorf("open sandbox api: %w", err)
	}
	return s, nil
}

// Close closes the journal.
func (s *Server) Close() error { return s.journal.Close() }

// Serve answers calls on l, and closes it, until ctx ends; it returns after the
// last call has been answered or given up. It is called at most once.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	server := &http.Server{Handler: s, ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug)}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve sandbox api on %s: %w", l.Addr(), err)
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		close(s.stopping)
		// No call waits once stopping is closed, so this ends by itself; the
		// time-out is for a client that does not read its answer.
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		if server.Shutdown(stop) != nil {
			return server.Close()
		}
		return nil
	})
	return g.Wait()
}
