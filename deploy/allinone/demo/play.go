package demo

import (
	"context"
	"errors"
	"fmt"
	"time"

	"attentive.internal/deploy/allinone/dataset"
	"attentive.internal/deploy/allinone/stage"
	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/cli/progress"
	"attentive.internal/pkg/contract"
	attentivev1 "attentive.internal/proto/attentive/v1"
	"golang.org/x/sync/errgroup"
)

// ingestTimeout is how long the sandbox may take to read the last files.
const ingestTimeout = time.Minute

// play is one demo on its stage.
type play struct {
	*stage.Stage
	options Options
	set     dataset.Set
	begin   time.Time
}

func (p *play) introduce() {
	in := p.options.Input
	fmt.Fprintf(p.options.Screen, "%s rows of three audiences and %s rows of attributes, generated with seed %d,\n",
		progress.Amount(uint64(in.Rows)), progress.Amount(uint64(in.Profiles)), in.Seed)
	fmt.Fprintf(p.options.Screen, "go through the broker and both workers to the sandbox, all in this process.\n\n")
}

// run is everything that happens while the stage runs.
func (p *play) run(ctx context.Context) (err error) {
	conn, err := p.Connect(ctx, "demo")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
	if err := p.found(ctx); err != nil {
		return fmt.Errorf("make the first subscribers: %w", err)
	}
	jobs, err := p.publish(ctx, conn)
	if err != nil {
		return err
	}
	if err := p.follow(ctx, conn, jobs); err != nil {
		return err
	}
	o, err := p.outcome(ctx, conn, jobs)
	if err != nil {
		return err
	}
	took := time.Since(p.begin)
	verdict := p.report(o, took)
	if p.options.Serve != nil {
		return errors.Join(verdict, p.options.Serve(ctx, p.Stage))
	}
	return verdict
}

// job is one that is sent, and how it ended.
type job struct {
	kind        contract.Kind
	destination string
	id          string
	label       string
	rows        int
	last        *attentivev1.JobEvent
}

// follow shows what happens to the jobs until all have ended and the sandbox has
// read their files.
func (p *play) follow(ctx context.Context, conn *broker.Conn, jobs []*job) error {
	g, following := errgroup.WithContext(ctx)
	for _, j := range jobs {
		g.Go(func() (err error) {
			j.last, err = p.options.Screen.Follow(following, conn, progress.Job{
				Kind: j.kind, Destination: j.destination, ID: j.id, Label: j.label, Rows: uint64(j.rows),
			})
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, ingestTimeout, fmt.Errorf("not done within %v", ingestTimeout))
	defer cancel()
	return p.Sandbox.Files().Settled(ctx)
}
