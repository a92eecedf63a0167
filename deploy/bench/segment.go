package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"attentive.internal/deploy/process"
	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/event"
	"attentive.internal/pkg/publish"
	attentivev1 "attentive.internal/proto/attentive/v1"
	"github.com/google/uuid"
)

// segmentSize is an audience, and DESIGN's goals for it; zero where it has none.
type segmentSize struct {
	rows, runs int
	ratio      float64 // how much faster than the peer
	peak       float64 // MB of memory
}

func segmentSizes() []segmentSize {
	return []segmentSize{
		{rows: 1_000_000, runs: 5},
		{rows: 5_000_000, runs: 5, ratio: 1, peak: 96},
		{rows: 40_000_000, runs: 3, ratio: 1.2, peak: 256},
	}
}

// segmentPeer is what the worker is compared with: a shell that is given the rows
// as they are to arrive, so that it need not check, sort out or split anything.
const segmentPeer = "gpg && sftp"

// segments measures how long jobs take from publishing to their success, through
// OpenPGP to OpenSSH's server, beside what a shell needs for the same rows; then
// the stages alone.
func segments(ctx context.Context, dir string, report func(result)) (err error) {
	b := &segmentBench{dir: dir}
	defer func() { err = errors.Join(err, b.end(context.WithoutCancel(ctx))) }()
	if err := b.open(ctx); err != nil {
		return err
	}
	for _, size := range segmentSizes() {
		if err := b.measure(ctx, size, report); err != nil {
			return fmt.Errorf("%d rows: %w", size.rows, err)
		}
	}
	return stages(ctx, report)
}

// segmentBench is a broker, a receiver and a key pair.
type segmentBench struct {
	dir, program string
	url          string // of the broker
	broker       *process.Process
	conn         *broker.Conn
	ssh          *openSSH
	gpg          string // its home
	publicKey    string // path
	settings     string // of the configuration, in lines before the others
}

// gpgRecipient is the key's user id.
const gpgRecipient = "bench"

func (b *segmentBench) open(ctx context.Context) (err error) {
	if b.program, err = process.Build(ctx, b.dir, "./segment-worker/cmd/segment-worker"); err != nil {
		return err
	}
	if b.url, b.broker, err = startBroker(ctx, b.dir); err != nil {
		return err
	}
	if b.conn, err = connectBroker(ctx, b.url, 1); err != nil {
		return err
	}
	if b.ssh, err = startOpenSSH(ctx, b.dir); err != nil {
		return err
	}
	// The agent's socket lies there, and its path has to stay below 108 bytes.
	if b.gpg, err = os.MkdirTemp("", "gpg"); err != nil {
		return err
	}
	if err := complete(ctx, "gpg", "--homedir", b.gpg, "--batch", "--passphrase", "", "--quick-generate-key", gpgRecipient, "future-default", "default", "never"); err != nil {
		return err
	}
	b.publicKey = filepath.Join(b.dir, "public.asc")
	err = complete(ctx, "gpg", "--homedir", b.gpg, "--batch", "--armor", "--output", b.publicKey, "--export", gpgRecipient)
	return err
}

// end ends all processes.
func (b *segmentBench) end(ctx context.Context) error {
	var errs []error
	if b.gpg != "" {
		err := complete(ctx, "gpgconf", "--homedir", b.gpg, "--kill", "gpg-agent")
		errs = append(errs, err, os.RemoveAll(b.gpg))
	}
	if b.conn != nil {
		errs = append(errs, b.conn.Close(ctx))
	}
	if b.ssh != nil {
		errs = append(errs, b.ssh.process.Kill()) // asked to end, it says that it was
	}
	if b.broker != nil {
		errs = append(errs, b.broker.Stop())
	}
	return errors.Join(errs...)
}

// measure compares worker and peer, in turns, over one audience. The worker is a
// new process, so that its memory is that of this audience.
func (b *segmentBench) measure(ctx context.Context, size segmentSize, report func(result)) error {
	fmt.Fprintf(os.Stderr, "segment: %d rows, %d runs\n", size.rows, size.runs)
	clean := filepath.Join(b.dir, "clean.csv")
	source, err := b.audience(ctx, size.rows, clean)
	if err != nil {
		return err
	}
	worker, err := b.startWorker(ctx)
	if err != nil {
		return err
	}
	var ours, theirs []time.Duration
	for range size.runs {
		took, err := b.job(ctx, source, size.rows)
		if err != nil {
			return errors.Join(err, worker.Stop())
		}
		ours = append(ours, took)
		if took, err = b.shell(ctx, clean); err != nil {
			return errors.Join(err, worker.Stop())
		}
		theirs = append(theirs, took)
	}
	used, err := cpuTime(worker.ID())
	peak, peakErr := peakMemory(worker.ID())
	if err = errors.Join(err, peakErr, worker.Stop()); err != nil {
		return err
	}
	name := fmt.Sprintf("segment/%dM rows", size.rows/1e6)
	report(compared(name, ours, peerRuns{segmentPeer, theirs}, size.ratio))
	report(timed(name+", "+segmentPeer, theirs))
	report(counted(name+", CPU for a million rows", used.Seconds()/float64(size.runs*size.rows)*1e6, "s"))
	memory := counted(name+", peak memory", peak, "MB")
	if size.peak > 0 {
		memory = memory.atMost(size.peak)
	}
	report(memory)
	return nil
}

// audience stores people as an audience, and what is to arrive of them in a file.
// They are different numbers of the North American plan, in no order.
func (b *segmentBench) audience(ctx context.Context, rows int, clean string) (*attentivev1.Source, error) {
	file, err := os.Create(clean)
	if err != nil {
		return nil, err
	}
	arriving := bufio.NewWriterSize(file, 1<<20)
	read, write := io.Pipe()
	done := make(chan error, 1)
	go func() { // ends with the pipe, which is closed below
		source := bufio.NewWriterSize(write, 1<<20)
		_, err := source.WriteString("phone\n")
		row := make([]byte, 0, 64)
		for i := range rows {
			row = appendPhone(row[:0], i)
			_, err1 := source.Write(append(row, '\n'))
			_, err2 := arriving.WriteString(string(row) + "," + benchSegment + "\n")
			if err = errors.Join(err, err1, err2); err != nil {
				break
			}
		}
		err = errors.Join(err, source.Flush(), arriving.Flush(), file.Close())
		done <- errors.Join(err, write.CloseWithError(err))
	}()
	source, err := publish.New(b.conn).Audience(ctx, fmt.Sprintf("bench-%d.csv", rows), read)
	if err = errors.Join(err, read.Close(), <-done); err != nil {
		return nil, err
	}
	source.Format = attentivev1.Format_FORMAT_CSV
	return source, nil
}

// appendPhone appends the i-th of 63 million numbers.
func appendPhone(row []byte, i int) []byte {
	const exchanges, stations, stride = 700, 10_000, 44_560_499 // the stride is prime
	areas := [...]int{212, 213, 305, 312, 415, 512, 617, 702, 808}
	n := i * stride % (len(areas) * exchanges * stations)
	row = append(row, "+1"...)
	row = strconv.AppendInt(row, int64(areas[n/(exchanges*stations)]), 10)
	return strconv.AppendInt(row, int64(3_000_000+n%(exchanges*stations)), 10)
}

// Names in the configuration, and of the segment, whose length counts: it is in
// each row.
const (
	benchDestination = "bench-segments"
	benchTemplate    = "default"
	benchSegment     = "Winback"
)

// startWorker starts a worker and returns when it is ready.
func (b *segmentBench) startWorker(ctx context.Context) (*process.Process, error) {
	ops, err := process.FreeAddress(ctx)
	if err != nil {
		return nil, err
	}
	text := b.settings + fmt.Sprintf(`broker: {url: %q}
ops_address: %q
credentials:
- {id: sftp, type: attentive-mobile, hostname: %s, port: %s, username: %s, private_key: {file: %q}, host_keys: [%q]}
destinations:
- id: %s
  name: Bench Segments
  plugin: attentive
  credential: sftp
  settings: {client_domain: bench, identifier: phone, remote_folder: %q, pgp: {keys: [%q]}}
  templates: [{id: %s, columns: {phone: phone}}]
`, b.url, ops, b.ssh.host, b.ssh.port, b.ssh.user, b.ssh.key, b.ssh.hostKey, benchDestination, b.ssh.folder, b.publicKey, benchTemplate)
	file := filepath.Join(b.dir, "relay.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return nil, err
	}
	p, err := process.Start(exec.CommandContext(context.WithoutCancel(ctx), b.program, "run", "--config", file))
	if err != nil {
		return nil, err
	}
	if err := p.Ready(ctx, "http://"+ops+"/readyz"); err != nil {
		return nil, errors.Join(err, p.Stop())
	}
	profiled(ctx, p, ops)
	return p, nil
}

// job publishes a job and returns how long it took to succeed with all its rows.
func (b *segmentBench) job(ctx context.Context, source *attentivev1.Source, rows int) (time.Duration, error) {
	job := &attentivev1.SegmentJob{
		Id: uuid.NewString(), Destination: benchDestination, Template: benchTemplate,
		Origin: &attentivev1.SegmentJob_Orchestration{Orchestration: &attentivev1.Orchestration{SegmentName: benchSegment}},
		Groups: []*attentivev1.Group{{Name: benchSegment, Source: source}},
	}
	begun := time.Now()
	if _, err := publish.New(b.conn).SegmentJob(ctx, job); err != nil {
		return 0, err
	}
	var last *attentivev1.JobEvent
	for e, err := range event.Follow(ctx, b.conn, contract.Segment, benchDestination, job.GetId()) {
		if err != nil {
			return 0, err
		}
		last = e
	}
	took := time.Since(begun)
	if last.GetState() != attentivev1.JobState_JOB_STATE_SUCCEEDED || last.GetProgress().GetRowsSent() != uint64(rows) {
		return 0, fmt.Errorf("job ended as %v with %d of %d rows: %s", last.GetState(), last.GetProgress().GetRowsSent(), rows, last.GetReason())
	}
	return took, b.ssh.empty()
}

// shell encrypts and uploads a file as a script would, with the cipher that the
// worker and the server agree on, and gives it its name.
func (b *segmentBench) shell(ctx context.Context, clean string) (time.Duration, error) {
	encrypted, batch := clean+".pgp", filepath.Join(b.dir, "batch")
	remote := filepath.Join(b.ssh.folder, "bench.csv.pgp")
	if err := os.WriteFile(batch, fmt.Appendf(nil, "put %s %s.part\nrename %s.part %s\n", encrypted, remote, remote, remote), 0o600); err != nil {
		return 0, err
	}
	begun := time.Now()
	err := complete(ctx, "gpg", "--homedir", b.gpg, "--batch", "--yes", "--trust-model", "always", "--recipient", gpgRecipient,
		"--compress-algo", "none", "--output", encrypted, "--encrypt", clean)
	if err != nil {
		return 0, err
	}
	err = complete(ctx, "sftp", "-q", "-c", "aes128-gcm@openssh.com", "-P", b.ssh.port, "-i", b.ssh.key,
		"-o", "UserKnownHostsFile="+b.ssh.known, "-b", batch, b.ssh.user+"@"+b.ssh.host)
	if err != nil {
		return 0, err
	}
	return time.Since(begun), b.ssh.empty()
}
