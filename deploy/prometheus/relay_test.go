package prometheus_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"attentive.internal/deploy/allinone/stage"
	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/tracing/tracingtest"
	attentivev1 "attentive.internal/proto/attentive/v1"
	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/encoding/protojson"
)

// addresses of a running all-in-one, as it writes them.
type addresses struct {
	Broker        string `json:"broker"`
	Control       string `json:"control"`
	SegmentOps    string `json:"segment_ops"`
	AttributesOps string `json:"attributes_ops"`
}

// relay is the all-in-one as a user starts it, with the commands of both workers
// beside it.
type relay struct {
	t         *testing.T
	dir       string // of the programs
	data      string // of the all-in-one
	process   *process
	addresses addresses
	conn      *broker.Conn // as an upstream service has one
	collector *tracingtest.Collector
	said      bytes.Buffer // by the commands
}

// holdWellKnown keeps the broker from its well-known address, where a worker that
// somebody has left running would find it and take accounts of its own.
func holdWellKnown(t *testing.T) {
	t.Helper()
	if l, err := net.Listen("tcp", stage.WellKnown().Broker); err == nil { // else it is taken already
		t.Cleanup(func() { l.Close() })
	}
}

// startRelay builds the programs and starts the demo; its jobs may still be
// under way.
func startRelay(t *testing.T) *relay {
	t.Helper()
	r := &relay{t: t, dir: t.TempDir(), collector: tracingtest.Start(t)}
	r.data = filepath.Join(r.dir, "data")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", r.dir+string(filepath.Separator),
		"attentive.internal/deploy/allinone",
		"attentive.internal/segment-worker/cmd/segment-worker",
		"attentive.internal/attributes-worker/cmd/attributes-worker").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	holdWellKnown(t)
	r.process = start(t, r.dir, "env", "OTEL_EXPORTER_OTLP_ENDPOINT="+r.collector.URL, "OTEL_BSP_SCHEDULE_DELAY=200",
		filepath.Join(r.dir, "allinone"), "demo", "--serve", "--rows", "300", "--profiles", "300", "--data", r.data)
	await(t, "the all-in-one's addresses", func() error {
		content, err := os.ReadFile(filepath.Join(r.data, "addresses.json"))
		if err != nil {
			return errors.Join(err, r.process.ended())
		}
		return json.Unmarshal(content, &r.addresses)
	})
	return r
}

// served returns once the demo has compared what arrived, and goes on running.
func (r *relay) served() {
	r.t.Helper()
	await(r.t, "the demo's end", func() error {
		if !strings.Contains(text(r.t, r.process.stdout), "Still running") {
			return errors.Join(errors.New("it does not say that it is still running"), r.process.ended())
		}
		return nil
	})
}

// connect connects to its broker.
func (r *relay) connect() {
	r.t.Helper()
	conn, err := broker.Connect(r.t.Context(), broker.Options{URL: "nats://" + r.addresses.Broker, Name: "test"}, slog.New(slog.DiscardHandler))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(r.t.Context())) }) // the broker may be gone
	r.conn = conn
}

// command runs a worker's command to its end, which must be with this code.
func (r *relay) command(code int, program string, args ...string) string {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), longest)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(r.dir, program), append(args, "--config", r.config())...)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		r.t.Fatal(err)
	}
	if got := cmd.ProcessState.ExitCode(); got != code {
		r.t.Fatalf("%s %s: exit %d, want %d:\n%s", program, strings.Join(args, " "), got, code, out)
	}
	r.said.Write(out)
	return string(out)
}

func (r *relay) config() string { return filepath.Join(r.data, "relay.yaml") }

// configure replaces a text of the configuration by another.
func (r *relay) configure(from, to string) {
	r.t.Helper()
	before := text(r.t, r.config())
	after := strings.Replace(before, from, to, 1)
	if before == after {
		r.t.Fatalf("no %q in the configuration:\n%s", from, before)
	}
	if err := os.WriteFile(r.config(), []byte(after), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

// write puts a file in place at once, where jobs may name it, and returns its path.
func (r *relay) write(name, content string) string {
	r.t.Helper()
	path := filepath.Join(r.data, "input", name)
	if err := os.WriteFile(path+".new", []byte(content), 0o600); err != nil {
		r.t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		r.t.Fatal(err)
	}
	return path
}

// publish stores a job or a profile as JSON, as a service in any language does.
func (r *relay) publish(subject, message string) {
	r.t.Helper()
	msg := nats.NewMsg(subject)
	msg.Header.Set(contract.HeaderContentType, contract.ContentTypeJSON)
	msg.Header.Set("traceparent", "00-"+publisherTrace+"-"+publisherSpan+"-01")
	msg.Data = []byte(message)
	if _, err := r.conn.JS.PublishMsg(r.t.Context(), msg); err != nil {
		r.t.Fatalf("publish to %s: %v", subject, err)
	}
}

// sandbox asks the local Attentive, or changes its behaviour, and returns its
// answer.
func (r *relay) sandbox(method, path, body string) []byte {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), method, "http://"+r.addresses.Control+"/_sandbox/"+path, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		r.t.Fatalf("%s %s: status %d, %v: %s", method, path, resp.StatusCode, err, answer)
	}
	return answer
}

// events returns all job events that are stored, as text.
func (r *relay) events() string {
	r.t.Helper()
	stream, err := r.conn.JS.Stream(r.t.Context(), broker.StreamEvents)
	if err != nil {
		r.t.Fatal(err)
	}
	var all strings.Builder
	state := stream.CachedInfo().State
	for seq := state.FirstSeq; seq <= state.LastSeq; seq++ {
		msg, err := stream.GetMsg(r.t.Context(), seq)
		if err != nil {
			r.t.Fatalf("event %d: %v", seq, err)
		}
		var e attentivev1.JobEvent
		if err := contract.Decode(msg.Header, msg.Data, &e); err != nil {
			r.t.Fatalf("event %d: %v", seq, err)
		}
		fmt.Fprintf(&all, "%s %v %s\n", msg.Subject, msg.Header, protojson.Format(&e))
	}
	return all.String()
}

// deadLetters returns what is known of each, without the message itself.
func (r *relay) deadLetters() string {
	r.t.Helper()
	var all strings.Builder
	for l, err := range deadletter.New(r.conn, "test").List(r.t.Context(), deadletter.Filter{}) {
		if err != nil {
			r.t.Fatal(err)
		}
		fmt.Fprintf(&all, "%+v\n", l)
	}
	return all.String()
}

// metrics returns what both workers expose now.
func (r *relay) metrics() string {
	r.t.Helper()
	var all strings.Builder
	for _, address := range []string{r.addresses.SegmentOps, r.addresses.AttributesOps} {
		req, err := http.NewRequestWithContext(r.t.Context(), http.MethodGet, "http://"+address+"/metrics", nil)
		if err != nil {
			r.t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			r.t.Fatal(err)
		}
		_, err = io.Copy(&all, resp.Body)
		if err := errors.Join(err, resp.Body.Close()); err != nil {
			r.t.Fatal(err)
		}
	}
	return all.String()
}
