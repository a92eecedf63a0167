package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/pkg/access"
	"attentive.internal/pkg/audit"
	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/config"
	"attentive.internal/pkg/pause"
)

// policies are the names by which --policy knows them.
func policies() map[string]attentivev1.Policy {
	return map[string]attentivev1.Policy{
		"datagrid-operator":      attentivev1.Policy_POLICY_DATAGRID_OPERATOR,
		"datagrid-administrator": attentivev1.Policy_POLICY_DATAGRID_ADMINISTRATOR,
		"amp360-user":            attentivev1.Policy_POLICY_AMP360_USER,
		"ampiq-user":             attentivev1.Policy_POLICY_AMPIQ_USER,
	}
}

func policyNames() []string {
	return []string{"datagrid-operator", "datagrid-administrator", "amp360-user", "ampiq-user"}
}

// directory is one call of destinations.
type directory struct {
	*session
	json       bool
	policies   []string
	restricted bool
	service    bool
}

func (s *session) destinationsCommand() *cobra.Command {
	d := &directory{session: s}
	cmd := &cobra.Command{
		Use:   "destinations",
		Short: "List destinations, pause and resume them, and see who may use what",
		Long: `List the destinations of both workers as the configuration has them, and which
of them an operator has paused.

With --policy, or --service, say for each data template whether such a requester may
use it, and by which rule not. No broker is needed for that.`,
		Example: fmt.Sprintf(`  %[1]s destinations
  %[1]s destinations --policy amp360-user --restricted-pii
  %[1]s destinations pause acme-segments --because "wrong list on Friday"
  %[1]s destinations resume acme-segments`, s.program.Name),
		Args: cobra.NoArgs,
		RunE: judged(func(cmd *cobra.Command, _ []string) error { return d.list(cmd.Context()) }),
	}
	f := cmd.Flags()
	f.StringSliceVar(&d.policies, "policy", nil, "what a requester with this policy may use: "+strings.Join(policyNames(), ", "))
	f.BoolVar(&d.restricted, "restricted-pii", false, "the requester has restricted PII access")
	f.BoolVar(&d.service, "service", false, "what a service without a requester may use")
	jsonFlag(f, &d.json, "destinations")
	offer(cmd, "policy", policyNames())
	cmd.MarkFlagsMutuallyExclusive("policy", "service")
	cmd.AddCommand(s.pauseCommand(), s.resumeCommand())
	return cmd
}

func (d *directory) list(ctx context.Context) error {
	cfg, err := d.load()
	if err != nil {
		return err
	}
	if len(d.policies) > 0 || d.service {
		return d.usable(cfg)
	}
	if d.restricted {
		return fail(exitUsage, errors.New("--restricted-pii says more of a requester: add --policy"))
	}
	return d.pauses(ctx, cfg, func(_ *broker.Conn, kv jetstream.KeyValue) error {
		paused, err := pause.List(ctx, kv)
		if err != nil {
			return err
		}
		d.show(cfg, paused)
		return nil
	})
}

// pauses connects, opens the bucket of pauses, and calls with.
func (s *session) pauses(ctx context.Context, cfg *config.Config, with func(*broker.Conn, jetstream.KeyValue) error) error {
	return s.connect(ctx, cfg, func(conn *broker.Conn) error {
		kv, err := conn.KeyValue(ctx, broker.BucketPauses)
		if err != nil {
			return err
		}
		return with(conn, kv)
	})
}

// destinationView is what is shown of a destination.
type destinationView struct {
	ID         string       `json:"id"`
	Name       string       `json:"name"`
	Plugin     string       `json:"plugin"`
	Credential string       `json:"credential"`
	Templates  []string     `json:"templates"`
	Paused     *pause.Pause `json:"paused,omitempty"`
}

func (d *directory) show(cfg *config.Config, paused []pause.Pause) {
	t := tabwriter.NewWriter(d.stdout, 0, 0, 2, ' ', 0)
	row := func(v destinationView) {
		state := "-"
		if v.Paused != nil {
			state = v.Paused.String()
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", v.ID, orDash(v.Name), orDash(v.Plugin), orDash(v.Credential), orDash(strings.Join(v.Templates, ",")), state)
	}
	if d.json {
		row = func(v destinationView) { writeJSON(d.stdout, v) }
	} else {
		fmt.Fprintln(t, "ID\tNAME\tPLUGIN\tCREDENTIAL\tTEMPLATES\tPAUSED")
	}
	for _, c := range cfg.Destinations {
		v := destinationView{ID: c.ID, Name: c.Name, Plugin: c.Plugin, Credential: c.Credential}
		for _, t := range c.Templates {
			v.Templates = append(v.Templates, t.ID)
		}
		if i := slices.IndexFunc(paused, func(p pause.Pause) bool { return p.Destination == c.ID }); i >= 0 {
			v.Paused = &paused[i]
		}
		row(v)
	}
	for _, p := range paused {
		if !configured(cfg, p.Destination) { // it keeps messages from being swept
			row(destinationView{ID: p.Destination, Name: "not in " + cfg.Path, Paused: &p})
		}
	}
	_ = t.Flush() // fails as stdout does
}

func configured(cfg *config.Config, id string) bool {
	return slices.ContainsFunc(cfg.Destinations, func(d config.Destination) bool { return d.ID == id })
}

// use says whether a requester may use a template.
type use struct {
	Destination string `json:"destination"`
	Template    string `json:"template"`
	// Orchestration and Campaign are "yes", or why not.
	Orchestration string `json:"orchestration"`
	Campaign      string `json:"campaign"`
}

// usable shows what the requester that the flags describe may use.
func (d *directory) usable(cfg *config.Config) error {
	var requester *attentivev1.Requester
	if !d.service {
		requester = &attentivev1.Requester{RestrictedPii: d.restricted}
		for _, name := range d.policies {
			policy, ok := policies()[strings.ToLower(name)]
			if !ok {
				return fail(exitUsage, fmt.Errorf("--policy %q: there is no such policy; known are %s", name, strings.Join(policyNames(), ", ")))
			}
			requester.Policies = append(requester.Policies, policy)
		}
	}
	t := tabwriter.NewWriter(d.stdout, 0, 0, 2, ' ', 0)
	if !d.json {
		fmt.Fprintln(t, "DESTINATION\tTEMPLATE\tORCHESTRATION\tCAMPAIGN")
	}
	for _, c := range cfg.Destinations {
		for _, template := range c.Templates {
			answer := func(o access.Origin) string {
				err := access.Decide(access.Request{
					Requester: requester, Origin: o, Destination: c.Access, Template: template.Access, Campaigns: template.Campaigns,
				})
				if err != nil {
					return err.Error()
				}
				return "yes"
			}
			u := use{c.ID, template.ID, answer(access.Orchestration), answer(access.Campaign)}
			if d.json {
				writeJSON(d.stdout, u)
				continue
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", u.Destination, u.Template, short(u.Orchestration), short(u.Campaign))
		}
	}
	_ = t.Flush() // fails as stdout does
	return nil
}

// short is the rule of a refusal; --json has all of it.
func short(answer string) string {
	rule, _, _ := strings.Cut(strings.TrimPrefix(answer, "access denied by rule "), ":")
	if rule == answer {
		return answer
	}
	return "no: " + rule
}

func (s *session) pauseCommand() *cobra.Command {
	var by operator
	var because string
	cmd := &cobra.Command{
		Use:   "pause ID",
		Short: "Stop the work of a destination; its messages wait",
		Long: `Stop the work of a destination, in every replica, within seconds. What is at work
is finished within the worker's grace, or goes on from where it was when the
destination is resumed. Messages wait in their queues and are not swept, publishers
go on publishing, and the metric relay_paused keeps alerts silent.`,
		Example: fmt.Sprintf(`  %[1]s destinations pause acme-segments --because "wrong list on Friday"`, s.program.Name),
		Args:    cobra.ExactArgs(1),
	}
	by.flags(cmd.Flags())
	cmd.Flags().StringVar(&because, "because", "", "why, for whoever finds it paused (required)")
	required(cmd, "because")
	cmd.RunE = judged(func(cmd *cobra.Command, args []string) error {
		cfg, err := s.load()
		if err != nil {
			return err
		}
		if !configured(cfg, args[0]) {
			return fail(exitUsage, fmt.Errorf("destination %q: %s has none of this id; see `destinations`", args[0], cfg.Path))
		}
		return s.pauses(cmd.Context(), cfg, func(conn *broker.Conn, kv jetstream.KeyValue) error {
			what := audit.Action{Verb: audit.Pause, What: "destination " + args[0], Why: because}
			return by.act(cmd.Context(), conn, what, func() (string, error) {
				stands, set, err := pause.Set(cmd.Context(), kv, pause.Pause{Destination: args[0], Who: by.who(), Why: because})
				switch {
				case err != nil:
					return "", err
				case !set:
					fmt.Fprintf(s.stdout, "%s is %s already\n", args[0], stands)
					return "it was paused already", nil
				}
				fmt.Fprintf(s.stdout, "%s is paused: its messages wait until it is resumed: %s destinations resume %s\n", args[0], s.program.Name, args[0])
				return "paused", nil
			})
		})
	})
	return cmd
}

func (s *session) resumeCommand() *cobra.Command {
	var by operator
	cmd := &cobra.Command{
		Use:     "resume ID",
		Short:   "Go on with the work of a destination that was paused",
		Example: fmt.Sprintf("  %[1]s destinations resume acme-segments", s.program.Name),
		Args:    cobra.ExactArgs(1),
	}
	by.flags(cmd.Flags())
	cmd.RunE = judged(func(cmd *cobra.Command, args []string) error {
		// It may be one that is configured no more.
		if !regexp.MustCompile(`^[a-z0-9-]{1,32}$`).MatchString(args[0]) {
			return fail(exitUsage, fmt.Errorf("%q is no id of a destination, 1 to 32 of a-z, 0-9 and hyphen", args[0]))
		}
		cfg, err := s.load()
		if err != nil {
			return err
		}
		return s.pauses(cmd.Context(), cfg, func(conn *broker.Conn, kv jetstream.KeyValue) error {
			return by.act(cmd.Context(), conn, audit.Action{Verb: audit.Resume, What: "destination " + args[0]}, func() (string, error) {
				ended, ok, err := pause.Clear(cmd.Context(), kv, args[0])
				if err != nil {
					return "", err
				}
				text := "it was not paused"
				if ok {
					text = "it was " + ended.String()
				}
				fmt.Fprintf(s.stdout, "%s goes on: %s\n", args[0], text)
				return cmp.Or(text, "resumed"), nil
			})
		})
	})
	return cmd
}
