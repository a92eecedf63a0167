package attributesworker

import (
	"context"
	"errors"
	"io"

	"github.com/spf13/pflag"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/pkg/cli"
	"attentive.internal/pkg/config"
	"attentive.internal/pkg/contract"
)

const sendExample = `  # Each row updates one subscriber; the template says what the columns are.
  PROGRAM send --destination acme-attributes --file attributes.csv --name "nightly update"

  # Compressed NDJSON of a campaign, published and left to itself.
  PROGRAM send --destination acme-attributes --file attributes.ndjson.zst --campaign Winback --no-follow`

// Execute runs the command line of the program attributes-worker, args without
// its name, and returns its exit code.
func Execute(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	program := cli.Program{
		Name:   "attributes-worker",
		Short:  "Send attributes, opt-ins and opt-outs of subscribers to Attentive, by its API",
		Plugin: config.PluginAttributes,
		Kind:   contract.Expand,
		Run:    Run,
		Check:  check,
	}
	program.Send = cli.Send{
		Example:  sendExample,
		NameFlag: "name", NameUsage: "send as an orchestration, what it sends being called this",
		Flags: sendFlags,
	}
	return cli.Execute(ctx, program, args, stdout, stderr)
}

// sendFlags adds what an attributes job needs beyond what every job does.
func sendFlags(f *pflag.FlagSet) cli.Compose {
	file := f.String("file", "", "the file, one row a subscriber, as attributes.csv.gz")
	return func(h cli.Head) (cli.Order, error) {
		if *file == "" {
			return cli.Order{}, errors.New("no --file: name the file of rows, as --file attributes.csv.gz")
		}
		source := &attentivev1.Source{}
		job := &attentivev1.AttributesJob{Id: h.ID, Destination: h.Destination.ID, Template: h.Template.ID, Source: source}
		job.Origin = &attentivev1.AttributesJob_Orchestration{Orchestration: &attentivev1.Orchestration{SegmentName: h.Name}}
		if h.Campaign != "" {
			job.Origin = &attentivev1.AttributesJob_Campaign{Campaign: &attentivev1.Campaign{Name: h.Campaign}}
		}
		return cli.Order{Job: job, Files: []cli.File{{Path: *file, Source: source}}, Columns: columns(h.Template)}, nil
	}
}

// columns lists those that the template names: the expansion needs them all.
func columns(t config.Template) []string {
	var named []string
	for _, c := range []string{
		t.Columns.Phone, t.Columns.Email, t.Columns.ClientUserID, t.Columns.ShopifyID, t.Columns.KlaviyoID, t.Columns.OptIn,
	} {
		if c != "" {
			named = append(named, c)
		}
	}
	for _, a := range t.Attributes {
		named = append(named, a.Column)
	}
	return named
}
