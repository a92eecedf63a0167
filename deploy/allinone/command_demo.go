package main

import (
	"io"

	"attentive.internal/deploy/allinone/demo"
	"attentive.internal/deploy/allinone/stage"
	"attentive.internal/pkg/cli/progress"
	"github.com/spf13/cobra"
)

func demoCommand() *cobra.Command {
	var opt demo.Options
	var serve, quiet bool
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Send generated audiences and attributes to a sandbox, and check what arrives",
		Long: `Send generated audiences and attributes through the broker and both workers to a
local Attentive, all in this process, and compare what arrives with what the
generator counted. The exit code is 0 only if all agrees.

With --data everything is kept. Such a demo can be killed at any moment and
started again: it goes on where it was.`,
		Example: `  allinone demo
  allinone demo --rows 1000000
  allinone demo --data demo-data --serve`,
		Args: cobra.NoArgs,
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.IntVar(&opt.Input.Rows, "rows", 100_000, "rows of the audiences, at least 300")
	f.IntVar(&opt.Input.Profiles, "profiles", 2000, "rows of attributes, at least 200; 150 a second are sent")
	f.Uint64Var(&opt.Input.Seed, "seed", 1, "what is generated follows from it")
	f.StringVar(&opt.Dir, "data", "", "directory that keeps everything (default: a temporary one)")
	f.BoolVar(&serve, "serve", false, "go on running after the comparison")
	f.BoolVar(&quiet, "quiet", false, "show no progress")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := opt.Input.Validate(); err != nil {
			return usage(err)
		}
		tune()
		screen := cmd.ErrOrStderr()
		if quiet {
			screen = io.Discard
		}
		opt.Out, opt.Screen = cmd.OutOrStdout(), progress.New(screen, progress.StyleOf(screen))
		if serve {
			opt.Prefer = stage.WellKnown()
			opt.Serve = guide(cmd.OutOrStdout()).serve
		}
		return demo.Run(cmd.Context(), opt)
	}
	return cmd
}
