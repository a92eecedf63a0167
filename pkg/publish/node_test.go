package publish_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"attentive.internal/pkg/backlog"
	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/peer"
	"attentive.internal/pkg/queuetest"
	audience "attentive.internal/pkg/source"
	attentivev1 "attentive.internal/proto/attentive/v1"
)

// example is the program in Node.js, and a worker that plays along.
type example struct {
	t      *testing.T
	node   string
	url    string
	conn   *broker.Conn
	ledger *ledger.Ledger
}

func newExample(t *testing.T) *example {
	t.Helper()
	e := &example{t: t, node: peer.Need(t, "node")}
	if _, err := os.Stat("node/node_modules/nats"); err != nil {
		remedy := "the package nats of Node.js is not installed: npm ci --prefix pkg/publish/node"
		if os.Getenv(peer.RequireEnv) == "1" {
			t.Fatal(remedy)
		}
		t.Skip(remedy)
	}
	server := queuetest.Start(t)
	e.url, e.conn = server.URL, server.Conn(t)
	kv, err := e.conn.JS.KeyValue(t.Context(), broker.BucketLedger)
	if err != nil {
		t.Fatal(err)
	}
	e.ledger = ledger.New(kv)
	return e
}

// run publishes rows, and returns the exit code and what was said.
func (e *example) run(ctx context.Context, rows string) (int, string) {
	e.t.Helper()
	path := filepath.Join(e.t.TempDir(), "audience.csv")
	if err := os.WriteFile(path, []byte(rows), 0o600); err != nil {
		e.t.Fatal(err)
	}
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, e.node, "node/publish.js", e.url, "acme", "default", "VIP", path, id)
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		e.t.Errorf("%v: %s", err, &out)
	}
	return cmd.ProcessState.ExitCode(), out.String()
}

// end waits for the job, reads its message and rows as a worker does, and ends it in a
// state.
func (e *example) end(ctx context.Context, state ledger.State) (job *attentivev1.SegmentJob, rows int) {
	e.t.Helper()
	stream, err := e.conn.JS.Stream(ctx, broker.StreamJobs)
	if err != nil {
		e.t.Fatal(err)
	}
	for ; ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
		m, err := stream.GetLastMsgForSubject(ctx, contract.JobSubject(contract.Segment, "acme"))
		if err != nil {
			continue
		}
		job = &attentivev1.SegmentJob{}
		if err := errors.Join(contract.Decode(m.Header, m.Data, job), contract.CheckSubject(m.Subject, job)); err != nil {
			e.t.Fatal(err)
		}
		for j, err := range backlog.Jobs(ctx, e.conn, contract.Segment, "acme") {
			if err != nil {
				e.t.Fatal(err)
			}
			record, err := e.ledger.Begin(ctx, j.Entry)
			if err != nil {
				e.t.Fatal(err)
			}
			rows = e.read(ctx, job.GetGroups()[0].GetSource())
			err = record.Note(ctx, "", "done", func(now *ledger.Entry) {
				now.State, now.Segments = state, []*attentivev1.SegmentResult{{Name: "VIP", Rows: uint64(rows)}} //nolint:gosec // a count
			})
			if err != nil {
				e.t.Fatal(err)
			}
		}
		return job, rows
	}
	e.t.Fatal("no job was published")
	return nil, 0
}

// read counts the rows of a source, its digest checked.
func (e *example) read(ctx context.Context, s *attentivev1.Source) (rows int) {
	e.t.Helper()
	objects, err := e.conn.JS.ObjectStore(ctx, broker.ObjectsAudiences)
	if err != nil {
		e.t.Fatal(err)
	}
	opener, err := audience.New(audience.Config{Objects: objects, JetStream: e.conn.JS})
	if err != nil {
		e.t.Fatal(err)
	}
	reader, err := opener.Open(ctx, s)
	if err != nil {
		e.t.Fatal(err)
	}
	defer reader.Close()
	for {
		if _, err := reader.Next(); err != nil {
			if rows == 0 || !strings.Contains(err.Error(), "EOF") {
				e.t.Fatal(err)
			}
			return rows
		}
		rows++
	}
}

// Publishing needs no library of ours: this is the example of the README.
func TestPublishingFromNode(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		rows  int
		state ledger.State
		code  int
		want  string
	}{
		{"inline", 3, ledger.Succeeded, 0, "segment VIP: 3 rows"},
		{"as an object", 60_000, ledger.Succeeded, 0, "segment VIP: 60000 rows"},
		{"dead-lettered", 3, ledger.DeadLettered, 3, "dead_lettered"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			e := newExample(t)
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			var rows strings.Builder
			rows.WriteString("mobile\n")
			for i := range tt.rows {
				fmt.Fprintf(&rows, "+1206%07d\n", i)
			}
			type ended struct {
				code int
				said string
			}
			done := make(chan ended, 1)
			go func() {
				code, said := e.run(ctx, rows.String())
				done <- ended{code, said}
			}()
			job, n := e.end(ctx, tt.state)
			if n != tt.rows || job.GetOrchestration().GetSegmentName() != "VIP" {
				t.Errorf("%d rows of %v, want %d of VIP", n, job.GetOrigin(), tt.rows)
			}
			if got := <-done; got.code != tt.code || !strings.Contains(got.said, tt.want) {
				t.Errorf("exit %d, want %d and %q:\n%s", got.code, tt.code, tt.want, got.said)
			}
		})
	}
}
