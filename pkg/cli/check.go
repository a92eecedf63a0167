package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"attentive.internal/pkg/cli/progress"
	"attentive.internal/pkg/config"
	"attentive.internal/pkg/source"
	"attentive.internal/pkg/worker"
)

// Outcome is how a Trial ended.
type Outcome string

// Outcomes.
const (
	Passed  Outcome = "ok"
	Warning Outcome = "warning"
	Failed  Outcome = "failed"
)

// Trial is one thing that check has tried.
type Trial struct {
	Outcome Outcome `json:"outcome"`
	// Subject is what it was tried on: "credential acme-sftp".
	Subject string `json:"subject"`
	// Step is what was tried: "log in".
	Step string `json:"step"`
	// Detail is what was found, or what is wrong and the remedy. It never holds
	// a secret.
	Detail string `json:"detail"`
}

// errFound ends a check that found something wrong. The findings are written.
var errFound = errors.New("something is wrong, see above")

func (s *session) checkCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Validate the configuration and try every credential",
		Long: `Validate the configuration, then try the broker, every prefix of sources, and
every credential that destinations of plugin "` + s.program.Plugin + `" use. Nothing is sent to Attentive
but what the trials need, and what they make is removed again.

Everything that is wrong is reported, not only the first: faults of the
configuration with line and column, trials with the remedy.`,
		Example: fmt.Sprintf(`  %[1]s check --config relay.yaml
  %[1]s check --json | jq 'select(.outcome != "ok")'`, s.program.Name),
		Args: cobra.NoArgs,
	}
	jsonFlag(cmd.Flags(), &asJSON, "findings")
	cmd.RunE = judged(func(cmd *cobra.Command, _ []string) error {
		c := &checker{session: s, json: asJSON, style: progress.StyleOf(s.stdout)}
		return c.check(cmd.Context())
	})
	return cmd
}

// checker writes what is found.
type checker struct {
	*session
	json  bool
	style progress.Style
	code  exit // of the gravest finding
}

func (c *checker) check(ctx context.Context) error {
	cfg, err := config.Load(config.Find(c.configFile))
	if err != nil {
		return c.faults(err)
	}
	for _, w := range cfg.Warnings() {
		c.found(finding(Warning, w))
	}
	destinations := cfg.ForPlugin(c.program.Plugin)
	c.found(Trial{Passed, "configuration", cfg.Path, fmt.Sprintf("%d of %d destinations are of plugin %s",
		len(destinations), len(cfg.Destinations), c.program.Plugin)})
	if len(destinations) == 0 {
		c.found(Trial{Warning, "configuration", cfg.Path, "nothing to do for this worker; add a destination of its plugin"})
	}
	c.broker(ctx, cfg)
	c.sources(ctx, cfg)
	for trial := range c.program.Check(ctx, cfg) {
		c.found(trial)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if c.code != exitDone {
		return fail(c.code, errFound)
	}
	return nil
}

// faults reports a configuration that cannot be used.
func (c *checker) faults(err error) error {
	faults, ok := errors.AsType[config.Faults](err)
	if !ok {
		return fail(exitUsage, err)
	}
	for _, f := range faults {
		c.found(finding(Failed, f))
	}
	return fail(exitUsage, fmt.Errorf("the configuration has %d faults, see above", len(faults)))
}

func finding(o Outcome, f config.Fault) Trial {
	return Trial{
		Outcome: o, Subject: "configuration", Step: fmt.Sprintf("%s:%d:%d", f.File, f.Line, f.Column),
		Detail: strings.TrimPrefix(f.Path+": "+f.Problem+"; "+f.Remedy, ": "),
	}
}

// broker tries to connect, and looks at what is kept there.
func (c *checker) broker(ctx context.Context, cfg *config.Config) {
	conn, err := c.dial(ctx, cfg)
	if err != nil {
		c.found(Trial{Failed, "broker", "connect", err.Error()})
		c.code = exitCode(ctx, err)
		return
	}
	opt, _ := c.brokerOptions(cfg) // it was good a moment ago
	c.found(Trial{Passed, "broker", "connect", opt.String() + ", nats-server " + conn.NC.ConnectedServerVersion()})
	err = conn.Check(ctx, worker.BrokerSettings(cfg))
	switch {
	case err == nil:
		c.found(Trial{Passed, "broker", "streams", "all streams and buckets are there"})
	case cfg.Broker.ManageStreams:
		c.found(Trial{Warning, "broker", "streams", oneLine(err) + "; the worker brings that in order when it starts"})
	default:
		c.found(Trial{Failed, "broker", "streams", oneLine(err) + "; create or change that, or set broker.manage_streams: true"})
	}
	_ = conn.Close(context.WithoutCancel(ctx)) // nothing was written
}

// sources looks whether jobs can read what lies below the configured prefixes.
func (c *checker) sources(ctx context.Context, cfg *config.Config) {
	if len(cfg.SourcePrefixes) == 0 {
		return
	}
	opener, err := source.New(source.Config{Prefixes: cfg.SourcePrefixes, S3: source.S3(cfg.S3)})
	if err != nil {
		c.found(Trial{Failed, "sources", "prefixes", oneLine(err)})
		return
	}
	for _, prefix := range cfg.SourcePrefixes {
		trial := Trial{Outcome: Passed, Subject: "sources", Step: prefix}
		trial.Detail, err = opener.Try(ctx, prefix)
		if err != nil {
			trial.Outcome, trial.Detail = Failed, err.Error()
		}
		if errors.Is(err, source.ErrUntried) {
			trial.Outcome = Warning
		}
		c.found(trial)
	}
}

// oneLine writes joined errors one after the other.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// found writes one finding.
func (c *checker) found(t Trial) {
	if t.Outcome == Failed && c.code == exitDone {
		c.code = exitFailed
	}
	if c.json {
		writeJSON(c.stdout, t)
		return
	}
	tones := []progress.Tone{progress.Good, progress.Odd, progress.Bad}
	tone := tones[slices.Index([]Outcome{Passed, Warning, Failed}, t.Outcome)]
	fmt.Fprintf(c.stdout, "%s  %s: %s: %s\n", c.style.Paint(tone, fmt.Sprintf("%-7s", t.Outcome)), t.Subject, t.Step, t.Detail)
}
