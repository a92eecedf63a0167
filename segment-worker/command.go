package segmentworker

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/pkg/cli"
	"attentive.internal/pkg/config"
	"attentive.internal/pkg/contract"
)

const sendExample = `  # A campaign with two treatment groups; the template names their segments.
  PROGRAM send --destination acme-segments --campaign Winback \
      --group 'Jeans=jeans.csv.gz' --group 'Shoes=shoes.ndjson'

  # One segment, named here.
  PROGRAM send --destination acme-segments --segment VIP --group 'VIP=vip.csv'

  # Ten rows to a segment of their own, Winback_..._TEST, to look at first.
  PROGRAM send --destination acme-segments --campaign Winback --group 'Jeans=jeans.csv' --sample 10`

// Execute runs the command line of the program segment-worker, args without its
// name, and returns its exit code.
func Execute(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	return cli.Execute(ctx, cli.Program{
		Name:   "segment-worker",
		Short:  "Publish audiences as segments in Attentive, by SFTP",
		Plugin: config.PluginSegments,
		Kind:   contract.Segment,
		Run:    Run,
		Check:  check,
		Send: cli.Send{
			Example:   sendExample,
			NameFlag:  "segment",
			NameUsage: "send to the segment of this name, as an orchestration does",
			Flags:     sendFlags,
		},
	}, args, stdout, stderr)
}

// sendFlags adds what a segment job needs beyond what every job does.
func sendFlags(f *pflag.FlagSet) cli.Compose {
	groups := f.StringArray("group", nil, "a group and the file of its audience, as 'Jeans=jeans.csv.gz'; may be repeated")
	sample := f.Uint32("sample", 0, "send only this many rows, to a segment of its own")
	return func(h cli.Head) (cli.Order, error) {
		job := &attentivev1.SegmentJob{Id: h.ID, Destination: h.Destination.ID, Template: h.Template.ID, SampleRows: *sample}
		columns := []string{h.Template.Columns.Of(h.Template.Segment.Identifier)}
		if h.Campaign != "" {
			if group := h.Template.Columns.Group; group != "" {
				columns = append(columns, group)
			}
			job.Origin = &attentivev1.SegmentJob_Campaign{Campaign: &attentivev1.Campaign{Name: h.Campaign}}
		} else {
			job.Origin = &attentivev1.SegmentJob_Orchestration{Orchestration: &attentivev1.Orchestration{SegmentName: h.Name}}
		}
		order := cli.Order{Job: job, Columns: columns}
		if len(*groups) == 0 {
			return order, fmt.Errorf("no --group: name at least one group and its file, as --group 'Jeans=jeans.csv.gz'")
		}
		for _, text := range *groups {
			name, path, ok := strings.Cut(text, "=")
			if !ok || name == "" || path == "" {
				return order, fmt.Errorf("--group %q: want the group's name, an equals sign and its file, as 'Jeans=jeans.csv.gz'", text)
			}
			if slices.ContainsFunc(job.GetGroups(), func(g *attentivev1.Group) bool { return g.GetName() == name }) {
				return order, fmt.Errorf("--group %q: there are two groups of this name", name)
			}
			source := &attentivev1.Source{}
			job.Groups = append(job.Groups, &attentivev1.Group{Name: name, Source: source})
			order.Files = append(order.Files, cli.File{Path: path, Source: source})
		}
		return order, nil
	}
}
