package attributesworker_test

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/types/known/structpb"

	attentivev1 "attentive.internal/proto/attentive/v1"

	attributesworker "attentive.internal/attributes-worker"
	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/publish"
	"attentive.internal/pkg/sandbox/api"
	"attentive.internal/pkg/worker"
)

// configEnv makes this test program a worker, which calls can kill.
const configEnv = "ATTRIBUTES_TEST_CONFIG"

// TestMain runs a worker, or the tests: more of them at a time than there are
// processors, because they wait for leases and limits far more than they compute.
func TestMain(m *testing.M) {
	file := os.Getenv(configEnv)
	if file == "" {
		flag.Parse()
		if parallel := flag.Lookup("test.parallel").Value; parallel.String() == strconv.Itoa(runtime.GOMAXPROCS(0)) {
			_ = parallel.Set("6") // a number
		}
		os.Exit(m.Run())
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := attributesworker.Run(ctx, worker.Options{ConfigFile: file, Log: log}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// hangman stands between workers and the API, and kills the worker at each call
// that names a victim: by SIGKILL, when the call has been carried out.
type hangman struct {
	rig *rig
	api *httputil.ReverseProxy

	mu      sync.Mutex // guards the rest
	victims map[string]bool
	calls   map[string]int // of victims: by method, path and victim
	worker  *os.Process    // at work; nil: none is to be killed
	killed  int
}

// haunt has the rig's workers reach the API through a hangman, and starts one
// worker after the other until the end of the test.
func (r *rig) haunt(victims ...string) *hangman {
	r.t.Helper()
	target, err := url.Parse(r.sandbox.APIURL())
	if err != nil {
		r.t.Fatal(err)
	}
	h := &hangman{rig: r, api: httputil.NewSingleHostReverseProxy(target), victims: make(map[string]bool), calls: make(map[string]int)}
	for _, v := range victims {
		h.victims[v] = true
	}
	server := httptest.NewServer(h)
	r.t.Cleanup(server.Close)
	text, err := os.ReadFile(r.config)
	if err != nil {
		r.t.Fatal(err)
	}
	r.write(r.config, strings.ReplaceAll(string(text), r.sandbox.APIURL(), server.URL))

	ctx, cancel := context.WithCancel(context.WithoutCancel(r.t.Context()))
	var running sync.WaitGroup
	running.Go(func() {
		for ctx.Err() == nil {
			h.run(ctx)
		}
	})
	r.t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return h
}

// run runs a worker until it dies or ctx ends.
func (h *hangman) run(ctx context.Context) {
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	cmd.Env = append(os.Environ(), configEnv+"="+h.rig.config)
	cmd.Stderr = h.rig.t.Output()
	if err := cmd.Start(); err != nil {
		h.rig.t.Error(err)
		return
	}
	h.mu.Lock()
	h.worker = cmd.Process
	h.mu.Unlock()
	_ = cmd.Wait() // the state says it
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		h.mu.Lock()
		h.killed++
		h.mu.Unlock()
	} else if ctx.Err() == nil {
		h.rig.t.Errorf("worker ended by itself: %v", cmd.ProcessState)
	}
}

// victim returns the victim that a call names.
func (h *hangman) victim(text string) string {
	for v := range h.victims {
		if strings.Contains(text, v) {
			return v
		}
	}
	return ""
}

// ServeHTTP implements http.Handler.
func (h *hangman) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // the caller is gone
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	query, _ := url.QueryUnescape(r.URL.RawQuery)
	h.mu.Lock()
	victim := h.victim(query + string(body))
	if victim == "" || h.worker == nil {
		h.mu.Unlock()
		h.api.ServeHTTP(w, r)
		return
	}
	defer h.mu.Unlock()
	h.calls[r.Method+" "+r.URL.Path+" "+victim]++
	// Also when the caller has hung up: a busy machine may take longer than its time-out.
	h.api.ServeHTTP(httptest.NewRecorder(), r.WithContext(context.WithoutCancel(r.Context())))
	_ = h.worker.Kill() // it may be dead already
	panic(http.ErrAbortHandler)
}

// pardon lets calls that name victims pass from now on, and returns how many
// workers have died.
func (h *hangman) pardon() (killed int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.worker, h.victims = nil, nil
	return h.killed
}

func (r *rig) publish(profiles ...*attentivev1.Profile) {
	r.t.Helper()
	for _, p := range profiles {
		p.Id = uuid.NewString()
		if _, err := publish.New(r.conn).Profile(r.t.Context(), destination, contract.LiveJob, p); err != nil {
			r.t.Fatal(err)
		}
	}
}

// emptied waits until no profile is left to be done.
func (r *rig) emptied() {
	r.t.Helper()
	for deadline := time.Now().Add(5 * time.Minute); ; {
		s, err := r.conn.JS.Stream(r.t.Context(), broker.StreamProfiles)
		if err != nil {
			r.t.Fatal(err)
		}
		left := s.CachedInfo().State.Msgs
		if left == 0 {
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("%d profiles are not done", left)
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-r.t.Context().Done():
		}
	}
}

// intents counts the consent calls that are neither answered nor given up.
func (r *rig) intents() (n int) {
	r.t.Helper()
	people, err := r.conn.JS.KeyValue(r.t.Context(), broker.BucketConsent)
	if err != nil {
		r.t.Fatal(err)
	}
	keys, err := people.Keys(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	for _, key := range keys {
		entry, err := people.Get(r.t.Context(), key)
		if err != nil {
			r.t.Fatal(err)
		}
		if bytes.Contains(entry.Value(), []byte(`"state":"intent"`)) {
			n++
		}
	}
	return n
}

func update(phone string) *attentivev1.Profile {
	values, err := structpb.NewStruct(map[string]any{"color": "green"})
	if err != nil {
		panic(err) // a mistake of the test
	}
	return &attentivev1.Profile{
		Identifiers: &attentivev1.Identifiers{Phone: phone},
		Operation:   &attentivev1.Profile_Attributes{Attributes: &attentivev1.SetAttributes{Values: values}},
	}
}

func subscribe(phone string) *attentivev1.Profile {
	return &attentivev1.Profile{
		Identifiers: &attentivev1.Identifiers{Phone: phone},
		Operation:   &attentivev1.Profile_Subscribe{Subscribe: &attentivev1.Subscribe{}},
	}
}

// A profile whose call kills the worker each time, in the middle of hundreds that
// are held, and a subscribe whose call does: both end as dead letters, everything
// else is sent, and nobody is texted twice.
func TestKillers(t *testing.T) {
	t.Parallel()
	r := newRigOf(t, 2*time.Second) // whose end is waited for each time that a worker dies
	const n, killer, silent = 1000, 500, 2005
	h := r.haunt(phone(killer), phone(silent))
	for i := range n {
		r.publish(update(phone(i)))
	}
	for i := range 10 {
		r.publish(subscribe(phone(2000 + i)))
	}
	r.emptied()
	if got := h.pardon(); got < 6 || got > 12 {
		t.Errorf("%d workers died, want 6 for one killer, and at most as many for the other", got)
	}
	for i := range n {
		s, known := r.sandbox.API().Subscriber(phone(i))
		if !known || len(s.Attributes) == 0 {
			t.Errorf("%s has no attributes", phone(i))
		}
	}
	letters, unknown := 0, 0
	for l, err := range deadletter.New(r.conn, "test").List(t.Context(), deadletter.Filter{}) {
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case l.Reason == fault.CrashLoop:
			letters++
		case l.Reason == fault.OutcomeUnknown && l.Kind == contract.Subscribe: // under way when a worker died of another one's
			unknown++
		default:
			t.Errorf("dead letter %s: %s", l.Reason, l.Detail)
		}
	}
	if letters != 2 {
		t.Errorf("%d dead letters crash_loop, want 2", letters)
	}
	for i := range 10 {
		if s, _ := r.sandbox.API().Subscriber(phone(2000 + i)); s.Status(phone(2000+i), api.Marketing) == "" {
			unknown--
		}
	}
	if unknown != 0 {
		t.Errorf("%d more subscribes are kept than are not done", unknown)
	}
	h.mu.Lock()
	for call, times := range h.calls {
		if strings.HasPrefix(call, "POST") && strings.HasSuffix(call, "subscriptions "+phone(silent)) && times != 1 {
			t.Errorf("%s was made %d times, want once", call, times)
		}
	}
	t.Logf("calls that killed: %v", h.calls)
	h.mu.Unlock()

	// The subscribe was given up as one that nobody knows the outcome of: the
	// next one looks, and finds that it was carried out.
	if n := r.intents(); n != 0 {
		t.Errorf("%d calls count as under way, want none", n)
	}
	r.publish(subscribe(phone(silent)))
	r.emptied()
	texts := 0
	for _, m := range r.sandbox.API().Outbox() {
		if m.Phone == phone(silent) {
			texts++
		}
	}
	if texts != 1 {
		t.Errorf("%d texts to the one whose subscribe kills, want 1", texts)
	}
}
