package cli_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/types/known/timestamppb"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/cli"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/event"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/queuetest"
	"attentive.internal/pkg/source"
	attentivev1 "attentive.internal/proto/attentive/v1"
)

// standIn takes segment jobs from the queue, reads their sources as a worker
// does, and tells the story that tell makes of it.
type standIn struct {
	t    *testing.T
	conn *broker.Conn
	tell func(j *attentivev1.SegmentJob, rows []uint64) []*attentivev1.JobEvent
}

// work runs until the end of the test.
func (s *standIn) work() {
	s.t.Helper()
	consumer, err := s.conn.JS.CreateConsumer(s.t.Context(), broker.StreamJobs, jetstream.ConsumerConfig{
		Durable: "stand-in", AckPolicy: jetstream.AckExplicitPolicy, FilterSubject: contract.ConsumerFilter(contract.Segment, "acme"),
	})
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(s.t.Context()))
	var done sync.WaitGroup
	done.Go(func() {
		for ctx.Err() == nil {
			m, err := consumer.Next(jetstream.FetchContext(ctx))
			if err == nil {
				s.handle(ctx, m)
			}
		}
	})
	s.t.Cleanup(func() { cancel(); done.Wait() })
}

func (s *standIn) handle(ctx context.Context, m jetstream.Msg) {
	job := &attentivev1.SegmentJob{}
	if err := contract.Decode(m.Headers(), m.Data(), job); err != nil {
		s.t.Error(err)
		return
	}
	ledgers, err := s.conn.JS.KeyValue(ctx, broker.BucketLedger)
	if err != nil {
		s.t.Error(err)
		return
	}
	entry := ledger.Entry{Kind: contract.Segment, Destination: job.GetDestination(), JobID: job.GetId(), Fingerprint: ledger.Fingerprint(m.Data())}
	if _, err := ledger.New(ledgers).Begin(ctx, entry); err != nil {
		s.t.Error(err)
	}
	var rows []uint64
	for _, g := range job.GetGroups() {
		n, err := s.count(ctx, g.GetSource())
		if err != nil {
			s.t.Error(err)
		}
		rows = append(rows, n)
	}
	if err := m.DoubleAck(ctx); err != nil {
		s.t.Error(err)
	}
	events := event.NewPublisher(s.conn, slog.New(slog.DiscardHandler))
	for _, e := range s.tell(job, rows) {
		e.JobId, e.Destination, e.Attempt, e.Time = job.GetId(), job.GetDestination(), 1, timestamppb.Now()
		events.Publish(ctx, contract.Segment, e)
	}
}

func (s *standIn) count(ctx context.Context, from *attentivev1.Source) (uint64, error) {
	objects, err := s.conn.JS.ObjectStore(ctx, broker.ObjectsAudiences)
	if err != nil {
		return 0, err
	}
	opener, err := source.New(source.Config{Objects: objects, JetStream: s.conn.JS})
	if err != nil {
		return 0, err
	}
	r, err := opener.Open(ctx, from)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	if _, err := r.Column("mobile"); err != nil {
		return 0, err
	}
	var n uint64
	for {
		_, err := r.Next()
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return n, err
		}
		n++
	}
}

// success is the story of a job of which all went well.
func success(j *attentivev1.SegmentJob, rows []uint64) []*attentivev1.JobEvent {
	done := &attentivev1.JobEvent{State: attentivev1.JobState_JOB_STATE_SUCCEEDED, Text: "published", Progress: &attentivev1.Progress{}}
	for i, g := range j.GetGroups() {
		done.Segments = append(done.Segments, &attentivev1.SegmentResult{Name: g.GetName(), Rows: rows[i], Files: []string{g.GetName() + ".csv"}})
		done.Progress.RowsRead += rows[i]
		done.Progress.RowsSent += rows[i]
	}
	return []*attentivev1.JobEvent{
		{State: attentivev1.JobState_JOB_STATE_RECEIVED, Text: "received"},
		{State: attentivev1.JobState_JOB_STATE_UPLOADING, Text: "uploading"},
		done,
	}
}

func csv(rows int) string {
	var b strings.Builder
	b.WriteString("name,mobile\n")
	for i := range rows {
		fmt.Fprintf(&b, "Somebody with a name,+1206555%04d\n", i%10_000)
	}
	return b.String()
}

func gzipped(t *testing.T, text string) string {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func zstandard(t *testing.T, text string) string {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return string(w.EncodeAll([]byte(text), nil))
}

func TestSendFilesOfEveryKind(t *testing.T) {
	t.Parallel()
	server := queuetest.Start(t)
	d := newDesk(t, server.URL)
	conn := server.Conn(t)
	var mu sync.Mutex
	sources := map[string]*attentivev1.Source{}
	(&standIn{t: t, conn: conn, tell: func(j *attentivev1.SegmentJob, rows []uint64) []*attentivev1.JobEvent {
		mu.Lock()
		defer mu.Unlock()
		sources[j.GetId()] = j.GetGroups()[0].GetSource()
		return success(j, rows)
	}}).work()
	large := csv(30_000) // above a megabyte
	for i, tt := range []struct {
		file, text string
		flags      []string
		object     bool
		rows       string
	}{
		{"a.csv", csv(3), nil, false, "3"},
		{"A.CSV", csv(3), nil, false, "3"},
		{"a.tsv", strings.ReplaceAll(csv(3), ",", "\t"), nil, false, "3"},
		{"a.csv.gz", gzipped(t, csv(4)), nil, false, "4"},
		{"a.ndjson.zst", zstandard(t, `{"mobile":"+12065550101"}`+"\n"), nil, false, "1"},
		{"a.jsonl", `{"mobile":"+12065550101"}` + "\n", nil, false, "1"},
		{"a.txt", strings.ReplaceAll(csv(5), ",", ";"), []string{"--format", "csv", "--delimiter", ";"}, false, "5"},
		{"rows", gzipped(t, csv(6)), []string{"--format", "csv", "--compression", "gzip"}, false, "6"},
		{"large.csv", large, nil, true, "30,000"},
	} {
		t.Run(tt.file, func(t *testing.T) {
			t.Parallel()
			id := fmt.Sprintf("%08x%s", i, jobID[8:])
			path := d.write(fmt.Sprintf("%d-%s", i, tt.file), tt.text)
			r := d.execute(append([]string{"send", "--destination", "acme", "--campaign", "Winback", "--job", id, "--group", path}, tt.flags...)...)
			r.expect(t, 0, "job "+id+" for acme published", "Group0", tt.rows+" read, "+tt.rows+" sent", "delivered; Attentive shows it within 24 hours")
			mu.Lock()
			defer mu.Unlock()
			if got := sources[id]; (got.GetObject() != "") != tt.object || len(got.GetSha256()) != 32 {
				t.Errorf("source is object %q with digest %x, want an object: %v", got.GetObject(), got.GetSha256(), tt.object)
			}
		})
	}
}

func TestSendKeepsTheMessageSmall(t *testing.T) {
	t.Parallel()
	server := queuetest.Start(t)
	d := newDesk(t, server.URL)
	(&standIn{t: t, conn: server.Conn(t), tell: success}).work()
	args := []string{"send", "--destination", "acme", "--campaign", "Winback"}
	for i := range 3 { // each fits into a message, but not all into one
		args = append(args, "--group", d.write(fmt.Sprintf("%d.csv", i), csv(10_000)))
	}
	d.execute(args...).expect(t, 0, "30,000 read, 30,000 sent", "Group2")
}

func TestSendJSON(t *testing.T) {
	t.Parallel()
	server := queuetest.Start(t)
	d := newDesk(t, server.URL)
	(&standIn{t: t, conn: server.Conn(t), tell: success}).work()
	args := []string{"send", "--destination", "acme", "--segment", "VIP", "--template", "queries", "--job", jobID, "--json", "--group", d.write("a.csv", csv(2))}
	r := d.execute(args...)
	r.expect(t, 0)
	type line struct {
		Published *struct {
			Job, Kind, Destination, Template, Stream string
			Sequence                                 uint64
			Repeated                                 bool
		}
		Event *struct {
			State    string
			Segments []struct{ Name, Rows string }
		}
	}
	var lines []line
	for text := range strings.Lines(r.stdout) {
		var l line
		if err := json.Unmarshal([]byte(text), &l); err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		lines = append(lines, l)
	}
	if len(lines) != 4 || lines[0].Published == nil || lines[3].Event == nil {
		t.Fatalf("want a line for the publishing and three for events: %v", r)
	}
	if p := *lines[0].Published; p.Job != jobID || p.Kind != "segment" || p.Destination != "acme" || p.Template != "queries" || p.Sequence == 0 || p.Repeated {
		t.Errorf("published = %+v", p)
	}
	if e := *lines[3].Event; e.State != "JOB_STATE_SUCCEEDED" || len(e.Segments) != 1 || e.Segments[0].Rows != "2" {
		t.Errorf("last event = %+v", e)
	}
	// The same again is the same job.
	d.execute(append(args, "--no-follow")...).expect(t, 0, `"repeated":true`)
	// The same id with other rows is not.
	d.write("a.csv", csv(3))
	d.execute(args...).expect(t, 3, "the id was used for a job with other content; use a new id")
}

func TestSendTellsOfTroubles(t *testing.T) {
	t.Parallel()
	blocked := &attentivev1.JobEvent{
		State: attentivev1.JobState_JOB_STATE_BLOCKED, Reason: "log_in_refused",
		Text: "waiting: sftp acme: the server refused password; correct the secret",
	}
	for _, tt := range []struct {
		name string
		tell func(*attentivev1.SegmentJob, []uint64) []*attentivev1.JobEvent
		code int
		want []string
	}{
		{
			"blocked, then repaired",
			func(j *attentivev1.SegmentJob, rows []uint64) []*attentivev1.JobEvent {
				return append([]*attentivev1.JobEvent{blocked}, success(j, rows)...)
			},
			0,
			[]string{"acme  blocked (log_in_refused): waiting: sftp acme: the server refused password; correct the secret", "delivered"},
		},
		{
			"dead letter",
			func(*attentivev1.SegmentJob, []uint64) []*attentivev1.JobEvent {
				return []*attentivev1.JobEvent{{State: attentivev1.JobState_JOB_STATE_DEAD_LETTERED, Reason: "audience_shrank", Text: "10 rows, last time 100"}}
			},
			3,
			[]string{
				"job " + jobID + " of acme was dead-lettered: audience_shrank: 10 rows, last time 100",
				"once that is repaired: stand-in dead-letters replay --all --job " + jobID,
			},
		},
		{
			"cancelled",
			func(*attentivev1.SegmentJob, []uint64) []*attentivev1.JobEvent {
				return []*attentivev1.JobEvent{{State: attentivev1.JobState_JOB_STATE_CANCELLED}}
			},
			1,
			[]string{"was cancelled"},
		},
		{
			"dead profiles",
			func(*attentivev1.SegmentJob, []uint64) []*attentivev1.JobEvent {
				return []*attentivev1.JobEvent{{
					State:    attentivev1.JobState_JOB_STATE_SUCCEEDED,
					Progress: &attentivev1.Progress{RowsRead: 2, ProfilesTotal: 2, ProfilesDead: 1},
				}}
			},
			3,
			[]string{"1 profiles of job " + jobID + " were dead-lettered", "dead-letters list --job " + jobID},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			server := queuetest.Start(t)
			d := newDesk(t, server.URL)
			(&standIn{t: t, conn: server.Conn(t), tell: tt.tell}).work()
			d.execute("send", "--destination", "acme", "--segment", "VIP", "--job", jobID, "--group", d.write("a.csv", csv(2))).
				expect(t, tt.code, tt.want...)
		})
	}
}

func TestSendInterrupted(t *testing.T) {
	t.Parallel()
	server := queuetest.Start(t)
	d := newDesk(t, server.URL)
	conn := server.Conn(t)
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	watch, err := conn.NC.SubscribeSync(contract.JobSubject(contract.Segment, "acme"))
	if err == nil {
		err = conn.NC.FlushTimeout(time.Minute) // the broker knows of it before send comes
	}
	if err != nil {
		t.Fatal(err)
	}
	var done sync.WaitGroup
	defer done.Wait()
	done.Go(func() {
		if _, err := watch.NextMsg(time.Minute); err != nil {
			t.Error(err)
		}
		interrupt()
	})
	r := d.executeIn(ctx, "send", "--destination", "acme", "--segment", "VIP", "--job", jobID,
		"--group", d.write("a.csv", csv(2)), "--config", filepath.Join(d.dir, "relay.yaml"))
	r.expect(t, 130, jobID)
}

// signalling calls signal when it is written to.
type signalling struct{ signal func() }

func (s signalling) Write(p []byte) (int, error) {
	s.signal()
	return len(p), nil
}

func TestSendInterruptedWhileFollowing(t *testing.T) {
	t.Parallel()
	server := queuetest.Start(t)
	d := newDesk(t, server.URL)
	server.Conn(t)
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	var stderr bytes.Buffer
	code := cli.Execute(ctx, d.program, []string{
		"send", "--destination", "acme", "--segment", "VIP", "--job", jobID,
		"--group", d.write("a.csv", csv(2)), "--config", filepath.Join(d.dir, "relay.yaml"),
	}, signalling{interrupt}, &stderr) // the first that is written is that the job is published
	want := "stand-in: interrupted: job " + jobID + " goes on without us; to follow it again: stand-in jobs " + jobID + " --follow\n"
	if code != 130 || stderr.String() != want {
		t.Errorf("exit %d, want 130: %q", code, stderr.String())
	}
}

func TestSendFollowsLinksAndOddNames(t *testing.T) {
	t.Parallel()
	server := queuetest.Start(t)
	d := newDesk(t, server.URL)
	(&standIn{t: t, conn: server.Conn(t), tell: success}).work()
	odd := d.write("50% off ü #1?.csv", csv(2))
	link := filepath.Join(t.TempDir(), "link.csv")
	if err := os.Symlink(odd, link); err != nil {
		t.Fatal(err)
	}
	d.execute("send", "--destination", "acme", "--campaign", "Winback", "--group", odd, "--group", link).
		expect(t, 0, "4 read, 4 sent")
}

func TestSendRepeatsAnUpload(t *testing.T) {
	t.Parallel()
	server := queuetest.Start(t)
	d := newDesk(t, server.URL)
	conn := server.Conn(t)
	(&standIn{t: t, conn: conn, tell: success}).work()
	args := []string{"send", "--destination", "acme", "--segment", "VIP", "--job", jobID, "--group", d.write("a.csv", csv(20_000))}
	d.execute(args...).expect(t, 0, "published", "20,000 sent")
	d.execute(args...).expect(t, 0, "was published before", "20,000 sent")
	d.write("a.csv", csv(20_001))
	d.execute(args...).expect(t, 1, "another audience has this name")
	objects, err := conn.JS.ObjectStore(t.Context(), broker.ObjectsAudiences)
	if err != nil {
		t.Fatal(err)
	}
	list, err := objects.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != 1 || list[0].Name != jobID+"/1.csv" {
		t.Errorf("objects = %v, want one of the job's name", list)
	}
}

func TestSendRefusesBeforeAnythingIsPublished(t *testing.T) {
	t.Parallel()
	server := queuetest.Start(t)
	d := newDesk(t, server.URL)
	conn := server.Conn(t)
	good := d.write("good.csv", csv(3))
	for _, tt := range []struct {
		name string
		args []string
		code int
		want []string
	}{
		{"unknown destination", []string{"--destination", "acne", "--group", good}, 2, []string{`--destination "acne"`, "known are acme", "relay.yaml"}},
		{"destination of another plugin", []string{"--destination", "acme-attributes", "--group", good}, 2, []string{"no such destination of plugin attentive"}},
		{"unknown template", []string{"--template", "other", "--group", good}, 2, []string{`--template "other"`, "known are default, queries"}},
		{"no file", nil, 2, []string{"no --group"}},
		{"missing file", []string{"--group", filepath.Join(d.dir, "none.csv")}, 2, []string{"none.csv", "correct its path"}},
		{"folder", []string{"--group", d.dir + ".csv/.."}, 2, []string{"use --format"}},
		{"empty file", []string{"--group", d.write("empty.csv", "")}, 2, []string{"empty.csv", "is empty"}},
		{"unknown ending", []string{"--group", d.write("a.xlsx", "PK")}, 2, []string{"a.xlsx", "use --format csv, ndjson or parquet"}},
		{"unknown format", []string{"--group", good, "--format", "xlsx"}, 2, []string{`--format "xlsx": use csv, ndjson or parquet`}},
		{"unknown compression", []string{"--group", good, "--compression", "zip"}, 2, []string{`--compression "zip": use none, gzip or zstd`}},
		{"delimiter", []string{"--group", good, "--delimiter", "||"}, 2, []string{"delimiter"}},
		{"job id", []string{"--group", good, "--job", "tonight"}, 2, []string{"invalid SegmentJob: id:"}},
		{"missing column", []string{"--group", d.write("other.csv", "phone\n+12065550101\n")}, 3, []string{"other.csv", `column "mobile" is not among its 1 columns`}},
		{"broken row", []string{"--group", d.write("broken.csv", "name,mobile\nAnn,+12065550101\n\"Bob,+12065550102\n")}, 3, []string{"broken.csv", "row 2"}},
		{"not compressed", []string{"--group", d.write("a.csv.gz", csv(3))}, 3, []string{"a.csv.gz"}},
		{"access", []string{"--template", "queries", "--group", good, "--campaign", "Winback"}, 3, []string{"access denied by rule campaigns"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			args := append([]string{"send"}, tt.args...)
			if !strings.Contains(strings.Join(args, " "), "--destination") {
				args = append(args, "--destination", "acme")
			}
			if !strings.Contains(strings.Join(args, " "), "--campaign") {
				args = append(args, "--segment", "VIP")
			}
			d.execute(args...).expect(t, tt.code, tt.want...)
		})
	}
	t.Cleanup(func() {
		stream, err := conn.JS.Stream(context.WithoutCancel(t.Context()), broker.StreamJobs)
		if err != nil {
			t.Fatal(err)
		}
		if n := stream.CachedInfo().State.Msgs; n != 0 {
			t.Errorf("%d jobs were published, want none", n)
		}
	})
}

func TestSendWithoutStreams(t *testing.T) {
	t.Parallel()
	server := queuetest.Start(t)
	d := newDesk(t, server.URL)
	d.execute("send", "--destination", "acme", "--segment", "VIP", "--group", d.write("a.csv", csv(2))).
		expect(t, 1, "the stream does not exist: start a worker, which creates it")
}
