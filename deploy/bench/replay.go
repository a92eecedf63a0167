package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"attentive.internal/deploy/process"
	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/fault"
)

const (
	// replayGoal and replayLetters are from DESIGN's numbers to reach; half of the
	// letters are of each of two reasons.
	replayGoal    = 10_000
	replayLetters = 100_000
	// replayFew is what memory is compared with.
	replayFew = 10_000
	// replayRate is the rate that is asked for, for a tenth of the letters.
	replayRate = 2_000
)

// replayBench is what the benchmark works with.
type replayBench struct {
	conn            *broker.Conn
	program, config string
	report          func(result)
	stored          int // letters so far
}

// replay stores dead letters, and has the command line list, filter and replay them
// at a set rate and at its own: each of them must lie in its queue once.
func replay(ctx context.Context, dir string, report func(result)) (err error) {
	url, b, err := startBroker(ctx, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Stop()) }()
	conn, err := broker.Connect(ctx, broker.Options{URL: url, Name: "bench replay"}, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
	if err := conn.Ensure(ctx, broker.Settings{}); err != nil {
		return err
	}
	r := &replayBench{conn: conn, report: report}
	fmt.Fprintln(os.Stderr, "replay: building")
	if r.program, err = process.Build(ctx, dir, "./attributes-worker/cmd/attributes-worker"); err != nil {
		return err
	}
	if r.config, err = writeConfig(dir, url, "127.0.0.1:0"); err != nil {
		return err
	}
	return r.run(ctx)
}

func (r *replayBench) run(ctx context.Context) error {
	if err := r.store(ctx, replayFew); err != nil {
		return err
	}
	few, err := r.command(ctx, "replay", "--all")
	if err != nil {
		return err
	}
	if err := r.store(ctx, replayLetters); err != nil {
		return err
	}
	listed, err := r.command(ctx, "list", "--json")
	if err != nil {
		return err
	}
	filtered, err := r.command(ctx, "list", "--json", "--reason", string(fault.Rejected))
	if err != nil {
		return err
	}
	if listed.lines != replayLetters || filtered.lines != replayLetters/2 {
		return fmt.Errorf("%d were listed and %d of one reason, want %d and %d", listed.lines, filtered.lines, replayLetters, replayLetters/2)
	}
	r.report(listed.perSecond("replay/list", replayLetters, ""))
	paced, err := r.command(ctx, "replay", "--all", "--reason", string(fault.InvalidProfile), "--rate", strconv.Itoa(replayRate))
	if err != nil {
		return err
	}
	pace := paced.perSecond("replay/at a rate of 2,000", replayLetters/10, "1,600 to 2,000 a second")
	pace.Met = pace.Value <= replayRate && pace.Value >= 0.8*replayRate // the start of the program is part of it
	r.report(pace)
	all, err := r.command(ctx, "replay", "--all", "--json")
	if err != nil {
		return err
	}
	fast := all.perSecond("replay/all", replayLetters-replayLetters/10, fmt.Sprintf(">= %d a second", replayGoal))
	fast.Met = fast.Value >= replayGoal
	r.report(fast)
	memory := counted("replay/memory", max(all.peak, listed.peak), "MB")
	ratio := few.peak / max(all.peak, listed.peak)
	peer := fmt.Sprintf("%d letters", replayFew)
	memory.Ratio, memory.Peer, memory.Goal, memory.Met = &ratio, &peer, ">= 0.75 x", ratio >= 0.75
	r.report(memory)
	return r.judge(ctx)
}

// store stores n more dead letters.
func (r *replayBench) store(ctx context.Context, n int) error {
	fmt.Fprintf(os.Stderr, "replay: storing %d dead letters\n", n)
	letters := deadletter.New(r.conn, "bench")
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(256)
	for range n {
		i := r.stored
		r.stored++
		reason := fault.Rejected
		switch {
		case i%10 == 1:
			reason = fault.InvalidProfile
		case i%2 == 1:
			reason = fault.RetriesExhausted
		}
		g.Go(func() error {
			return letters.Put(ctx, deadletter.Letter{
				Kind: contract.Attributes, Destination: "bench-attributes", Job: contract.LiveJob, Reason: reason, Attempts: 1,
				Detail: "POST /v1/attributes/custom: status 400", Data: fmt.Appendf(nil, "%0200d", i),
				Origin: deadletter.Origin{
					Stream: broker.StreamProfiles, Subject: contract.ProfileSubject("bench-attributes", contract.Attributes, contract.LiveJob),
					Sequence: uint64(i + 1), //nolint:gosec // not negative
				},
			})
		})
	}
	return g.Wait()
}

// ran is one call of the command line.
type ran struct {
	took  time.Duration
	lines int
	peak  float64 // of memory while it wrote lines, in MB
}

// perSecond makes the result of n letters.
func (r ran) perSecond(name string, n int, goal string) result {
	v := float64(n) / r.took.Seconds()
	return result{Name: name, Value: v, Unit: "1/s", Goal: goal, Met: true, Runs: 1, Min: v, Median: v, P99: v, Max: v}
}

// command runs dead-letters in a process of its own.
func (r *replayBench) command(ctx context.Context, args ...string) (ran, error) {
	args = append(append([]string{"dead-letters"}, args...), "--config", r.config)
	fmt.Fprintf(os.Stderr, "replay: %s %v\n", filepath.Base(r.program), args)
	cmd := exec.CommandContext(ctx, r.program, args...)
	cmd.Env = append(os.Environ(), "RELAY_BENCH_SECRET=secret")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return ran{}, err
	}
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return ran{}, err
	}
	var result ran
	lines := bufio.NewReader(out)
	for {
		_, err := lines.ReadString('\n')
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return ran{}, errors.Join(err, cmd.Wait())
		}
		result.lines++
		// What the system says of a process that has ended begins with the memory of
		// the one that started it. It may have ended before its last lines are read.
		if result.lines%1000 == 0 {
			if peak, err := peakMemory(cmd.Process.Pid); err == nil {
				result.peak = peak
			}
		}
	}
	if err := cmd.Wait(); err != nil {
		return ran{}, fmt.Errorf("%v: %w", args, err)
	}
	result.took = time.Since(began)
	return result, nil
}

// judge takes all messages out of the queue: each must be there once.
func (r *replayBench) judge(ctx context.Context) error {
	consumer, err := r.conn.JS.CreateConsumer(ctx, broker.StreamProfiles, jetstream.ConsumerConfig{
		AckPolicy: jetstream.AckExplicitPolicy, MaxAckPending: r.stored + 1,
	})
	if err != nil {
		return err
	}
	seen := make([]bool, r.stored)
	for n := 0; n < r.stored; {
		batch, err := consumer.Fetch(min(1000, r.stored-n))
		if err != nil {
			return err
		}
		for m := range batch.Messages() {
			i, err := strconv.Atoi(string(m.Data()))
			if err != nil || i < 0 || i >= r.stored || seen[i] {
				return fmt.Errorf("message %.20q is there twice, or was never stored", m.Data())
			}
			seen[i] = true
			n++
		}
		if err := batch.Error(); err != nil {
			return fmt.Errorf("after %d of %d messages: %w", n, r.stored, err)
		}
	}
	if left := consumer.CachedInfo().NumPending; left != uint64(r.stored) { //nolint:gosec // not negative
		return fmt.Errorf("%d messages are in the queue, want %d", left, r.stored)
	}
	fmt.Fprintf(os.Stderr, "replay: %d messages are in the queue, each once\n", r.stored)
	return nil
}
