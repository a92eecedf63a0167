// Package ops serves what operators and their machines look at: /metrics, /livez,
// /readyz and /debug/pprof, and a page at / that shows live, without Prometheus or
// Grafana, whether data is flowing, how late, and why not.
//
// The page is made of the metrics alone, five minutes of which are kept for its
// rates; it loads nothing from elsewhere.
//
// /livez answers 200 as long as the process serves at all: a restart would not
// repair what /readyz complains of. /readyz answers 200 while the worker can do
// its work, else 503 with the reason as text. Nothing here asks for a password:
// the address belongs on loopback or on a network of the operators.
package ops

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

const (
	headerTimeout = 5 * time.Second
	// idleTimeout outlives the usual scrape interval of 15 s, so that a scraper
	// keeps its connection.
	idleTimeout = time.Minute
	// drainTimeout is how long requests in flight may take to end at a stop.
	drainTimeout = 2 * time.Second
)

// Server serves the ops address of one process.
type Server struct {
	addr     string
	log      *slog.Logger
	server   *http.Server
	listener net.Listener
	history  *history
}

// Config says what a Server shows.
type Config struct {
	// Address is host:port; port 0 takes a free one.
	Address string
	// Program is the name of the page.
	Program string
	Metrics prometheus.Gatherer
	// Ready says whether the worker can work, and why not. It is called for every
	// request of / and /readyz, concurrently, and must be cheap.
	Ready func() error
}

// New returns a server that listens and serves nothing yet.
func New(cfg Config, log *slog.Logger) *Server {
	recent := &history{metrics: cfg.Metrics}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(cfg.Metrics, promhttp.HandlerOpts{
		ErrorLog:      slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		ErrorHandling: promhttp.ContinueOnError, // a broken metric must not hide the others
	}))
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { text(w, http.StatusOK, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := cfg.Ready(); err != nil {
			text(w, http.StatusServiceUnavailable, "not ready: "+err.Error())
			return
		}
		text(w, http.StatusOK, "ready")
	})
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	mux.Handle("GET /{$}", newPage(cfg.Program, recent, cfg.Ready))
	return &Server{addr: cfg.Address, log: log, history: recent, server: &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}}
}

// Listen takes the address. Its error names the address and what to do.
func (s *Server) Listen(ctx context.Context) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", s.addr)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("ops address %q is in use, perhaps by another worker on this machine; "+
			"set another ops_address (port 0 takes a free one): %w", s.addr, err)
	case err != nil:
		return fmt.Errorf("listen on ops address %q; check ops_address: %w", s.addr, err)
	}
	s.listener = l
	return nil
}

// Addr returns the address taken by Listen, or "" before it.
func (s *Server) Addr() string {
	if s.listener == nil {
		return ""
	}
	return s.listener.Addr().String()
}

// Run serves until ctx ends, lets requests in flight finish for two seconds, and
// returns when nothing is served any more. It calls Listen when nobody has.
func (s *Server) Run(ctx context.Context) error {
	if s.listener == nil {
		if err := s.Listen(ctx); err != nil {
			return err
		}
	}
	s.log.InfoContext(ctx, "ops address open", "addr", s.Addr())
	sampling, stop := context.WithCancel(ctx)
	var samples sync.WaitGroup
	samples.Go(func() { s.history.run(sampling) })
	defer samples.Wait()
	defer stop()
	failed := make(chan error, 1)
	go func() { failed <- s.server.Serve(s.listener) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serve ops address %q: %w", s.Addr(), err)
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	if err := s.server.Shutdown(drain); err != nil {
		_ = s.server.Close() // a profile that runs for minutes is cut, not waited for
	}
	if err := <-failed; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve ops address %q: %w", s.Addr(), err)
	}
	return nil
}

func text(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body+"\n") // the reader has gone: nobody to tell
}
