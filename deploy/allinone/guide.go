package main

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"

	"attentive.internal/deploy/allinone/account"
	"attentive.internal/deploy/allinone/stage"
	"attentive.internal/pkg/contract"
	"github.com/google/uuid"
)

// guided writes what somebody can try who has a stage before them.
type guided struct{ out io.Writer }

func guide(out io.Writer) guided { return guided{out} }

// serve writes it, and returns when ctx ends.
func (g guided) serve(ctx context.Context, s *stage.Stage) error {
	views := s.Sandbox.ControlURL() + "/_sandbox/"
	fmt.Fprintf(g.out, `
Still running; Ctrl-C stops it.

  broker             %s
  segment-worker     http://%s/metrics
  attributes-worker  http://%s/metrics
  sandbox, views     %s
  sandbox, API       %s   key %s
  sandbox, SFTP      %s   user %s, password %q
  configuration      %s

Try:

  # What arrived.
  curl %ssegments
  curl %sfiles
  curl '%ssubscribers?limit=3'
  curl %soutbox

`, s.Broker.URL(), s.Addresses.SegmentOps, s.Addresses.AttributesOps, views,
		s.Sandbox.APIURL(), account.Token, s.Sandbox.SFTPAddr(), account.Username, account.Passphrase, s.ConfigFile,
		views, views, views, views)
	fmt.Fprintf(g.out, `  # A job as JSON, from any language, here with the nats command line.
  nats -s %s pub %s -H %s:%s '%s'
  curl %ssegments

  # The same with the relay's own command, which follows the job.
  printf 'mobile\n(206) 555-0100\n' >friends.csv
  go run ./segment-worker/cmd/segment-worker send --config %s \
      --destination %s --segment Friends --group 'Friends=friends.csv'

`, s.Broker.URL(), contract.JobSubject(contract.Segment, account.Segments),
		contract.HeaderContentType, contract.ContentTypeJSON, friends(), views, s.ConfigFile, account.Segments)
	<-ctx.Done()
	return nil
}

// friends is a job as JSON.
func friends() string {
	rows := base64.StdEncoding.EncodeToString([]byte("mobile\n(206) 555-0100\n+1 415 555 0123\n"))
	return fmt.Sprintf(`{"id":%q,"destination":%q,"template":%q,"orchestration":{"segment_name":"Friends"},`+
		`"groups":[{"name":"Friends","source":{"inline":%q,"format":"FORMAT_CSV"}}]}`,
		uuid.NewString(), account.Segments, account.Template, rows)
}
