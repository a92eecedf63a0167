// Package cli is the command line of both workers: run, check, send, jobs,
// dead-letters, destinations, forget, actions and streams.
//
// It promises to a script: what was asked for is on standard output, one JSON
// object a line with --json; everything else, progress included, is on standard
// error; and the exit code says how it ended. It promises to a person: an error
// names the input, the place and the remedy; what takes long shows how far it
// is; and payloads, which hold personal data, are not shown unless asked for.
package cli

import (
	"context"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/cli/progress"
	"attentive.internal/pkg/config"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/worker"
)

// connectTimeout is how long a command waits for the broker's first answer.
const connectTimeout = 5 * time.Second

// Program is what differs between the command lines.
type Program struct {
	// Name of the program, "segment-worker" say.
	Name string
	// Short says in a few words what it does.
	Short string
	// Plugin whose destinations the program works.
	Plugin string
	// Kind of the jobs that it sends, [contract.Segment] or [contract.Expand].
	Kind contract.Kind
	// Run is the worker. It returns nil after a clean stop.
	Run func(ctx context.Context, opt worker.Options) error
	// Check tries what the plugin's destinations need, one thing after the other.
	Check func(ctx context.Context, cfg *config.Config) iter.Seq[Trial]
	Send  Send
}

// Execute runs the command line args (without the program's name) until it is
// done or ctx ends, and returns the exit code. It has no globals: programs and
// tests call it side by side.
func Execute(ctx context.Context, p Program, args []string, stdout, stderr io.Writer) int {
	s := &session{program: p, stdout: stdout, stderr: stderr, screen: progress.New(stderr, progress.StyleOf(stderr))}
	root := s.root()
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SetArgs(append([]string{}, args...)) // nil would mean those of the process
	called, err := root.ExecuteContextC(ctx)
	code := exitCode(ctx, err)
	if err != nil {
		s.explain(called, code, err)
	}
	return int(code)
}

// session is one command line being run.
type session struct {
	program        Program
	stdout, stderr io.Writer
	screen         *progress.Screen

	// Flags of all commands.
	configFile  string
	natsContext string
}

func (s *session) root() *cobra.Command {
	root := &cobra.Command{
		Use:   s.program.Name,
		Short: s.program.Short,
		Long: s.program.Short + `

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 dead-lettered
or refused, 4 broker unreachable, 130 interrupted.`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.PersistentFlags().StringVar(&s.configFile, "config", "",
		"configuration file (default $ATTENTIVE_RELAY_CONFIG, else ./relay.yaml)")
	root.PersistentFlags().StringVar(&s.natsContext, "context", "",
		"connect as this context of the nats program does, not as the configuration says; - for the selected one")
	root.AddCommand(
		s.runCommand(), s.checkCommand(), s.sendCommand(), s.jobsCommand(), s.deadLettersCommand(), s.destinationsCommand(),
		s.forgetCommand(), s.actionsCommand(), s.streamsCommand(),
	)
	return root
}

// explain writes an error that ended a command.
func (s *session) explain(called *cobra.Command, code exit, err error) {
	fmt.Fprintf(s.stderr, "%s: %v\n", s.program.Name, err)
	if code == exitUsage && !marked(err) {
		fmt.Fprintf(s.stderr, "see: %s --help\n", called.CommandPath())
	}
}

// load reads the configuration.
func (s *session) load() (*config.Config, error) {
	cfg, err := config.Load(config.Find(s.configFile))
	if err != nil {
		return nil, fail(exitUsage, err)
	}
	return cfg, nil
}

// loadBroker reads the configuration for commands that need nothing of it but the
// broker: with a context they need none.
func (s *session) loadBroker() (*config.Config, error) {
	if s.natsContext != "" {
		return &config.Config{}, nil
	}
	return s.load()
}

// brokerOptions says how to reach the broker.
func (s *session) brokerOptions(cfg *config.Config) (broker.Options, error) {
	name := s.program.Name + " command line"
	if s.natsContext == "" {
		return worker.BrokerOptions(cfg, name), nil
	}
	opt, err := broker.ContextOptions(s.natsContext)
	opt.Name = name
	return opt, fail(exitUsage, err)
}

// connect connects to the configured broker and calls with, and closes the
// connection afterwards.
func (s *session) connect(ctx context.Context, cfg *config.Config, with func(*broker.Conn) error) error {
	conn, err := s.dial(ctx, cfg)
	if err != nil {
		return err
	}
	err = with(conn)
	// All that was sent has been answered, so nothing is lost in the closing.
	_ = conn.Close(context.WithoutCancel(ctx))
	return err
}

func (s *session) dial(ctx context.Context, cfg *config.Config) (*broker.Conn, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, connectTimeout, fmt.Errorf("no answer within %v", connectTimeout))
	defer cancel()
	opt, err := s.brokerOptions(cfg)
	if err != nil {
		return nil, err
	}
	conn, err := broker.Connect(ctx, opt, s.log())
	if err != nil {
		return nil, fail(exitBroker, err)
	}
	return conn, nil
}

// log tells a person what the broker connection goes through.
func (s *session) log() *slog.Logger {
	return slog.New(slog.NewTextHandler(s.screen, &slog.HandlerOptions{
		Level: slog.LevelWarn,
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	}))
}

// offer has the shell complete a flag with values. The flag must be defined.
func offer(cmd *cobra.Command, flag string, values []string) {
	if err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // a mistake of ours
	}
}

// required has cobra insist on a flag. The flag must be defined.
func required(cmd *cobra.Command, flag string) {
	if err := cmd.MarkFlagRequired(flag); err != nil {
		panic(err) // a mistake of ours
	}
}

// jsonFlag adds --json.
func jsonFlag(f *pflag.FlagSet, to *bool, what string) {
	f.BoolVar(to, "json", false, "write "+what+" as one JSON object a line")
}
