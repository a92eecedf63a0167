package cli

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/spf13/cobra"

	"attentive.internal/pkg/config"
	"attentive.internal/pkg/worker"
)

func (s *session) runCommand() *cobra.Command {
	var opsAddress, level string
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Work jobs until interrupted",
		Long: `Work the jobs of all destinations of plugin "` + s.program.Plugin + `" until interrupted.

The first SIGINT or SIGTERM stops cleanly: what is under way is finished or goes
on where it was at the next start, and the accounts are released to other
replicas. A second one stops at once, and loses nothing either. SIGHUP reads the
configuration again, as does every change of the file.

The log goes to standard error, one JSON object a line. A live page, metrics, probes
and profiles are served on the ops address: /, /metrics, /livez, /readyz, /debug/pprof.
Spans go to an OpenTelemetry collector if OTEL_EXPORTER_OTLP_ENDPOINT names one.`,
		Example: fmt.Sprintf(`  %[1]s run --config relay.yaml
  %[1]s run --ops-address 0.0.0.0:9464 --log-level debug`, s.program.Name),
		Args: cobra.NoArgs,
	}
	cmd.Flags().StringVar(&opsAddress, "ops-address", "", "host:port of metrics and probes (default: ops_address of the configuration)")
	cmd.Flags().StringVar(&level, "log-level", "info", "least level that is logged: debug, info, warn or error")
	cmd.RunE = judged(func(cmd *cobra.Command, _ []string) error {
		var least slog.Level
		if err := least.UnmarshalText([]byte(level)); err != nil {
			return fail(exitUsage, fmt.Errorf("--log-level %q: use debug, info, warn or error", level))
		}
		if s.natsContext != "" {
			return fail(exitUsage, errors.New("--context is for commands: a worker's broker stands in its configuration"))
		}
		if _, err := s.load(); err != nil {
			return err // as every command says it, not as a line of the log
		}
		return s.program.Run(cmd.Context(), worker.Options{
			ConfigFile: config.Find(s.configFile),
			OpsAddress: opsAddress,
			Log:        slog.New(slog.NewJSONHandler(s.stderr, &slog.HandlerOptions{Level: least})),
		})
	})
	return cmd
}
