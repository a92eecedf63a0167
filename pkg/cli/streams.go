package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/worker"
)

// streamsCommand is for brokers whose users have permissions: workers that may
// not change streams are told so by broker.manage_streams, and an operator who
// may makes them.
func (s *session) streamsCommand() *cobra.Command {
	var apply bool
	cmd := &cobra.Command{
		Use:   "streams",
		Short: "Compare the broker's streams and buckets with what the workers need",
		Long: `Compare the streams, buckets and object stores of the broker with what the
workers need, and say how they differ. With --apply, create what is missing and
change what differs; nothing that is stored is ever deleted.

Workers do the same when they start, unless broker.manage_streams is false.`,
		Example: fmt.Sprintf(`  %[1]s streams --config relay.yaml
  %[1]s streams --apply --config as-administrator.yaml`, s.program.Name),
		Args: cobra.NoArgs,
	}
	cmd.Flags().BoolVar(&apply, "apply", false, "create what is missing, change what differs")
	cmd.RunE = judged(func(cmd *cobra.Command, _ []string) error {
		ctx := cmd.Context()
		cfg, err := s.load()
		if err != nil {
			return err
		}
		return s.connect(ctx, cfg, func(conn *broker.Conn) error {
			if apply {
				if err := conn.Ensure(ctx, worker.BrokerSettings(cfg)); err != nil {
					return err
				}
			}
			if err := conn.Check(ctx, worker.BrokerSettings(cfg)); err != nil {
				return err
			}
			fmt.Fprintln(s.stdout, "all streams and buckets are as the workers need them")
			return nil
		})
	})
	return cmd
}
