// Package bulkapi answers the attributes calls of the API as fast as it can, so that
// the worker is what a benchmark measures: it counts records and does not keep
// subscribers, as the sandbox does.
package bulkapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

const (
	// Answer is how long the API takes to accept a batch.
	Answer = 50 * time.Millisecond
	// Completes is how long it takes from then on to complete it.
	Completes = 500 * time.Millisecond
	// Bad is the phone of a record for which every batch that has it is refused.
	Bad = "+12129999999"
	// StatePath is where the Seen is told, and begun anew.
	StatePath = "/seen"
)

// Seen is what has arrived since it was last told.
type Seen struct {
	Calls   int       `json:"calls"`   // that carry attributes
	Refused int       `json:"refused"` // of these
	Records int       `json:"records"` // that were taken
	First   time.Time `json:"first"`
	Last    time.Time `json:"last"`
	// LastRecords is what the last call brought: its time has not passed yet.
	LastRecords int `json:"last_records"`
}

// Rate is the records a second between the first call and the last.
func (s Seen) Rate() float64 {
	return float64(s.Records-s.LastRecords) / s.Last.Sub(s.First).Seconds()
}

// api is the state of the server.
type api struct {
	address string

	mu   sync.Mutex // guards what follows
	seen Seen
	jobs map[string]job
	last int
}

type job struct {
	body []byte
	done time.Time
}

// Serve writes its address to out, as a line, and answers until ctx ends.
func Serve(ctx context.Context, out io.Writer) error {
	var listen net.ListenConfig
	l, err := listen.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	a := &api{address: l.Addr().String(), jobs: make(map[string]job)}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/attributes/custom", func(w http.ResponseWriter, r *http.Request) { a.take(w, r, 1, 0) })
	mux.HandleFunc("POST /v2/bulk/user/attributes", a.accept)
	mux.HandleFunc("GET /v2/bulk/job/{id}", a.status)
	mux.HandleFunc("GET /results/{id}", a.results)
	mux.HandleFunc("GET "+StatePath, a.state)
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() }) // whoever is cut off is ended too
	defer stop()
	fmt.Fprintln(out, a.address)
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve on %s: %w", a.address, err)
	}
	return nil
}

// take reads a call, and counts it: records of it, or as many as its body has. It
// answers unless the call is taken, and returns the body then.
func (a *api) take(w http.ResponseWriter, r *http.Request, records int, wait time.Duration) []byte {
	at := time.Now()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil // cut
	}
	if records == 0 {
		records = bytes.Count(body, []byte(`{"identifiers":`))
	}
	refused := bytes.Contains(body, []byte(Bad))
	a.mu.Lock()
	a.seen.Calls++
	if a.seen.First.IsZero() {
		a.seen.First = at
	}
	if refused {
		a.seen.Refused++
	} else {
		a.seen.Records += records
		a.seen.Last, a.seen.LastRecords = at, records
	}
	a.mu.Unlock()
	time.Sleep(wait)
	switch {
	case refused:
		w.WriteHeader(http.StatusBadRequest)
		answer(w, map[string]string{"message": "a record is not valid"})
		return nil
	case wait == 0:
		answer(w, struct{}{})
	}
	return body
}

func (a *api) accept(w http.ResponseWriter, r *http.Request) {
	body := a.take(w, r, 0, Answer)
	if body == nil {
		return
	}
	a.mu.Lock()
	a.last++
	id := fmt.Sprint(a.last)
	a.jobs[id] = job{body, time.Now().Add(Completes)}
	a.mu.Unlock()
	w.WriteHeader(http.StatusAccepted)
	answer(w, map[string]string{"message": "accepted", "batchJobId": id})
}

func (a *api) status(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	a.mu.Lock()
	job, found := a.jobs[id]
	a.mu.Unlock()
	status := map[string]any{"bulkJobId": id, "status": "IN_PROGRESS"}
	switch {
	case !found:
		w.WriteHeader(http.StatusNotFound)
	case time.Now().After(job.done):
		status["status"], status["url"] = "COMPLETED", "http://"+a.address+"/results/"+id
	}
	answer(w, status)
}

func (a *api) results(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	job := a.jobs[r.PathValue("id")]
	delete(a.jobs, r.PathValue("id"))
	a.mu.Unlock()
	var batch struct {
		Users []json.RawMessage `json:"users"`
	}
	if err := json.Unmarshal(job.body, &batch); err != nil {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	var lines strings.Builder
	for _, user := range batch.Users {
		fmt.Fprintf(&lines, `{"request":%s,"response":{"status":200}}`+"\n", user)
	}
	_, _ = io.WriteString(w, lines.String()) // who does not read it asks again
}

func (a *api) state(w http.ResponseWriter, _ *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	answer(w, a.seen)
	a.seen = Seen{}
}

// answer writes v. A client that is gone is no failure.
func answer(w http.ResponseWriter, v any) { _ = json.NewEncoder(w).Encode(v) }
