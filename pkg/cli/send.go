package cli

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/protobuf/proto"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/cli/progress"
	"attentive.internal/pkg/config"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/job"
	"attentive.internal/pkg/publish"
	"attentive.internal/pkg/source"
)

// Send is what differs between the programs in sending.
type Send struct {
	// Example are command lines that teach.
	Example string
	// NameFlag is the flag that names what an orchestration sends, in place of
	// --campaign; NameUsage says what it is.
	NameFlag, NameUsage string
	// Flags adds the program's own flags and returns what composes the job once
	// they are parsed.
	Flags func(f *pflag.FlagSet) Compose
}

// Compose makes the job that the flags ask for. Its errors are wrong usage.
type Compose func(h Head) (Order, error)

// Head is what every job begins with.
type Head struct {
	ID          string
	Kind        contract.Kind
	Destination config.Destination
	Template    config.Template
	// Campaign or Name is set: a campaign's name, or what an orchestration sends.
	Campaign, Name string
}

// Order is a job and the files it sends.
type Order struct {
	// Job is an *attentivev1.SegmentJob or an *attentivev1.AttributesJob,
	// complete but for what its sources say.
	Job Message
	// Files in the order in which they are read.
	Files []File
	// Columns that each file must have.
	Columns []string
}

// Message is a job's protobuf message.
type Message interface {
	proto.Message
	GetTemplate() string
	GetRequester() *attentivev1.Requester
	GetCampaign() *attentivev1.Campaign
}

// File is a file of rows.
type File struct {
	Path string
	// Source is part of the job, and still empty.
	Source *attentivev1.Source
}

// sender is one call of send.
type sender struct {
	*session
	id, destination, template string
	campaign, name            string
	encoding                  encoding
	noFollow, json            bool
	compose                   Compose
	limits                    source.Limits
}

func (s *session) sendCommand() *cobra.Command {
	send := &sender{session: s}
	cmd := &cobra.Command{
		Use:   "send",
		Short: "Publish a job from files and follow it to its end",
		Long: `Publish a job from files and follow it to its end.

Everything is checked first, destination, template, access and every row of the
files: a mistake is an error here, and nothing is published. Files travel inside
the job up to 512 KiB, larger ones in the broker's object store; a worker sends
them. To repeat a send that was interrupted, give it the same --job: a job is
done once however often it is published.`,
		Example: strings.ReplaceAll(s.program.Send.Example, "PROGRAM", s.program.Name),
		Args:    cobra.NoArgs,
		RunE:    judged(func(cmd *cobra.Command, _ []string) error { return send.send(cmd.Context()) }),
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&send.destination, "destination", "", "id of the destination (required)")
	f.StringVar(&send.template, "template", "", `id of the data template (default: the only one, or "default")`)
	f.StringVar(&send.campaign, "campaign", "", "send as the campaign of this name")
	f.StringVar(&send.name, s.program.Send.NameFlag, "", s.program.Send.NameUsage)
	send.compose = s.program.Send.Flags(f)
	send.encoding.flags(f)
	f.StringVar(&send.id, "job", "", "id of the job, a UUID in lower case (default: a new one)")
	f.BoolVar(&send.noFollow, "no-follow", false, "return once the broker has stored the job")
	jsonFlag(f, &send.json, "what happens to the job")
	cmd.MarkFlagsOneRequired("campaign", s.program.Send.NameFlag)
	cmd.MarkFlagsMutuallyExclusive("campaign", s.program.Send.NameFlag)
	required(cmd, "destination")
	return cmd
}

func (s *sender) send(ctx context.Context) error {
	cfg, err := s.load()
	if err != nil {
		return err
	}
	s.limits = source.LimitsOf(cfg.SourceLimits)
	head, err := s.head(cfg)
	if err != nil {
		return fail(exitUsage, err)
	}
	order, err := s.compose(head)
	if err != nil {
		return fail(exitUsage, err)
	}
	rows, err := s.prepare(ctx, head, order)
	if err != nil {
		return fmt.Errorf("nothing was published: %w", err)
	}
	return s.connect(ctx, cfg, func(conn *broker.Conn) error {
		receipt, err := s.publish(ctx, conn, head, order)
		switch {
		case err != nil && ctx.Err() != nil:
			return fmt.Errorf("interrupted: job %s may have been published or not; to go on, repeat the command with --job %s", head.ID, head.ID)
		case err != nil:
			return err
		}
		s.published(head, receipt)
		if s.noFollow {
			return nil
		}
		return s.follow(ctx, conn, head, rows)
	})
}

// head resolves what the flags name against the configuration.
func (s *sender) head(cfg *config.Config) (Head, error) {
	h := Head{ID: cmp.Or(s.id, uuid.NewString()), Kind: s.program.Kind, Campaign: s.campaign, Name: s.name}
	var ids []string
	for _, d := range cfg.ForPlugin(s.program.Plugin) {
		ids = append(ids, d.ID)
		if d.ID == s.destination {
			h.Destination = d
		}
	}
	if h.Destination.ID == "" {
		return h, fmt.Errorf("--destination %q: %s has no such destination of plugin %s; known are %s",
			s.destination, cfg.Path, s.program.Plugin, cmp.Or(strings.Join(ids, ", "), "none"))
	}
	ids = nil
	for _, t := range h.Destination.Templates {
		ids = append(ids, t.ID)
		if t.ID == s.template || s.template == "" && (t.ID == "default" || len(h.Destination.Templates) == 1) {
			h.Template = t
		}
	}
	if h.Template.ID == "" {
		return h, fmt.Errorf("--template %q: destination %s has no such template; known are %s", s.template, s.destination, strings.Join(ids, ", "))
	}
	return h, nil
}

// prepare fills the sources and judges job and files as a worker will. It
// returns the number of rows.
func (s *sender) prepare(ctx context.Context, h Head, o Order) (rows uint64, err error) {
	if err := locate(o.Files, h.ID, &s.encoding); err != nil {
		return 0, fail(exitUsage, err)
	}
	if err := contract.Validate(o.Job); err != nil {
		return 0, fail(exitUsage, err)
	}
	if _, err := job.Admit(h.Destination, o.Job); err != nil {
		return 0, err
	}
	line := s.screen.Begin(h.Destination.ID)
	defer line.End()
	for _, f := range o.Files {
		n, err := s.inspect(ctx, f, o.Columns, line)
		if err != nil {
			return 0, err
		}
		rows += n
	}
	return rows, nil
}

// publish stores what is too large for the message, and then the job.
func (s *sender) publish(ctx context.Context, conn *broker.Conn, h Head, o Order) (publish.Receipt, error) {
	client := publish.New(conn)
	line := s.screen.Begin(h.Destination.ID)
	defer line.End()
	for _, f := range o.Files {
		if f.Source.GetObject() == "" {
			continue
		}
		if err := upload(ctx, client, f, line); err != nil {
			return publish.Receipt{}, err
		}
	}
	line.Show("publishing the job")
	switch j := o.Job.(type) {
	case *attentivev1.SegmentJob:
		return client.SegmentJob(ctx, j)
	case *attentivev1.AttributesJob:
		return client.AttributesJob(ctx, j)
	}
	return publish.Receipt{}, fmt.Errorf("%T is no job", o.Job)
}

// upload stores a file under its object's name.
func upload(ctx context.Context, client *publish.Client, f File, line *progress.Line) (err error) {
	file, err := os.Open(f.Path)
	if err != nil {
		return fmt.Errorf("file: %w", err)
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	info, err := file.Stat()
	if err != nil {
		return fmt.Errorf("file: %w", err)
	}
	read := &counted{r: file, line: line, what: "storing " + filepath.Base(f.Path), total: uint64(info.Size())} //nolint:gosec // not negative
	kept, err := client.Audience(ctx, f.Source.GetObject(), read)
	if err != nil {
		return err
	}
	if !bytes.Equal(kept.GetSha256(), f.Source.GetSha256()) {
		return errChanged(f)
	}
	return nil
}

// receipt is what --json says of a published job.
type receipt struct {
	Job         string `json:"job"`
	Kind        string `json:"kind"`
	Destination string `json:"destination"`
	Template    string `json:"template"`
	Stream      string `json:"stream"`
	Sequence    uint64 `json:"sequence"`
	// Repeated is true when the broker had the job already.
	Repeated bool `json:"repeated"`
}

func (s *sender) published(h Head, r publish.Receipt) {
	if s.json {
		writeJSON(s.stdout, map[string]receipt{"published": {
			Job: h.ID, Kind: string(s.program.Kind), Destination: h.Destination.ID, Template: h.Template.ID,
			Stream: r.Stream, Sequence: r.Sequence, Repeated: r.Repeated,
		}})
		return
	}
	word := "published"
	if r.Repeated {
		word = "was published before"
	}
	fmt.Fprintf(s.stdout, "job %s for %s %s\n", h.ID, h.Destination.ID, word)
}

// follow shows the job until its end.
func (s *sender) follow(ctx context.Context, conn *broker.Conn, h Head, rows uint64) error {
	last, err := s.screen.Follow(ctx, conn, progress.Job{
		Kind: h.Kind, Destination: h.Destination.ID, ID: h.ID, Rows: rows,
		Seen: func(e *attentivev1.JobEvent) {
			if s.json {
				writeJSON(s.stdout, map[string]any{"event": protoJSON(e)})
			}
		},
	})
	if err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("interrupted: job %s goes on without us; to follow it again: %s jobs %s --follow", h.ID, s.program.Name, h.ID)
		}
		return err
	}
	if !s.json {
		progress.Report(s.stdout, last)
	}
	return s.ended(h, last)
}

// ended says what the end of a job means.
func (s *sender) ended(h Head, e *attentivev1.JobEvent) error {
	replay := fmt.Sprintf("once that is repaired: %s dead-letters replay --all --job %s", s.program.Name, h.ID)
	switch dead := e.GetProgress().GetProfilesDead(); {
	case e.GetState() == attentivev1.JobState_JOB_STATE_DEAD_LETTERED:
		return fail(exitRefused, fmt.Errorf("job %s of %s was dead-lettered: %s: %s\n%s", h.ID, h.Destination.ID, e.GetReason(), e.GetText(), replay))
	case e.GetState() == attentivev1.JobState_JOB_STATE_CANCELLED:
		return fmt.Errorf("job %s of %s was cancelled", h.ID, h.Destination.ID)
	case dead > 0:
		return fail(exitRefused, fmt.Errorf("%s profiles of job %s were dead-lettered: see %s dead-letters list --job %s\n%s",
			progress.Amount(dead), h.ID, s.program.Name, h.ID, replay))
	}
	return nil
}
