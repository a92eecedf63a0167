package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"attentive.internal/pkg/audit"
	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/fault"
)

// exported is one line of an export: a dead letter with all that it takes to put it
// back. An import reads message, and data where message was not changed.
type exported struct {
	letter
	Place     uint64      `json:"origin_place"`
	Published time.Time   `json:"published"`
	MsgID     string      `json:"origin_msg_id"`
	Replaces  string      `json:"replaces,omitempty"`
	Headers   nats.Header `json:"headers"`
	// Message is what to repair; a string when it cannot be decoded.
	Message any `json:"message"`
	// Data is the message exactly as it arrived.
	Data []byte `json:"data"`
}

func (s *session) exportCommand() *cobra.Command {
	var chosen selection
	var by operator
	var path string
	cmd := &cobra.Command{
		Use:   "export ID... | --all",
		Short: "Write dead letters to a file, to be repaired or kept",
		Long: `Write dead letters as NDJSON, one object a line, payloads included: to keep them, or
to repair "message" with other tools and import the file. They stay stored.

The file holds personal data. It is made readable for you alone.`,
		Example: fmt.Sprintf(`  %[1]s dead-letters export --all --reason invalid_profile --file broken.ndjson
  jq -c '.message.identifiers.phone |= "+1" + .' broken.ndjson > repaired.ndjson
  %[1]s dead-letters import repaired.ndjson`, s.program.Name),
	}
	chosen.flags(cmd, "export")
	by.flags(cmd.Flags())
	cmd.Flags().StringVar(&path, "file", "", "file to write, which must not exist (default: standard output)")
	cmd.RunE = judged(func(cmd *cobra.Command, args []string) (err error) {
		if err := chosen.parse(args, "export"); err != nil {
			return fail(exitUsage, err)
		}
		out := s.stdout
		if path != "" {
			file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
			if err != nil {
				return fail(exitUsage, fmt.Errorf("--file: %w", err))
			}
			defer func() { err = errors.Join(err, file.Close()) }()
			out = file
		}
		return s.store(cmd.Context(), func(conn *broker.Conn, store *deadletter.Store) error {
			return by.act(cmd.Context(), conn, audit.Action{Verb: audit.Export, What: chosen.String()}, func() (string, error) {
				n, err := s.export(cmd.Context(), &chosen, store, out, conn)
				fmt.Fprintf(s.stderr, "%d dead letters written; they hold personal data and are still stored\n", n)
				return fmt.Sprintf("%d exported", n), err
			})
		})
	})
	return cmd
}

func (s *session) export(ctx context.Context, chosen *selection, store *deadletter.Store, w io.Writer, conn *broker.Conn) (n int, err error) {
	encoder := json.NewEncoder(w)
	for l, err := range chosen.letters(ctx, conn, store, func(uint64) {}) {
		if err != nil {
			return n, err
		}
		err = encoder.Encode(exported{
			letter: shown(l), Place: l.Origin.Place, Published: l.Origin.Published, MsgID: l.MsgID, Replaces: l.Replaces,
			Headers: l.Header, Message: message(l, true), Data: l.Data,
		})
		if err != nil {
			return n, fmt.Errorf("write dead letter %d: %w", l.ID, err)
		}
		n++
	}
	return n, nil
}

// letter returns the dead letter that was exported.
func (e exported) read() deadletter.Letter {
	return deadletter.Letter{
		ID: e.ID, Kind: contract.Kind(e.Kind), Destination: e.Destination, Job: e.Job, Reason: e.Reason, Detail: e.Detail,
		Attempts: e.Attempts, First: e.First, Last: e.Last, Stored: e.Stored, Worker: e.Worker, MsgID: e.MsgID,
		EditedBy: e.EditedBy, Replaces: e.Replaces, Header: e.Headers, Data: e.Data, Size: len(e.Data),
		Origin: deadletter.Origin{Stream: e.Stream, Subject: e.Subject, Sequence: e.Sequence, Place: e.Place, Published: e.Published},
	}
}

// repaired returns the data of the message as it stands in the line, and whether it
// differs from what arrived.
func (e exported) repaired() (data []byte, edited bool, err error) {
	l := e.read()
	var before any
	text, err := json.Marshal(message(l, true))
	if err == nil {
		err = json.Unmarshal(text, &before)
	}
	if err != nil {
		return nil, false, err
	}
	if reflect.DeepEqual(before, e.Message) {
		return l.Data, false, nil
	}
	text, err = json.Marshal(e.Message)
	if err != nil {
		return nil, false, err
	}
	data, err = encoded(l, text)
	return data, true, err
}

// encoded returns a message that was written in JSON in the encoding of the letter's
// content type, and judges it.
func encoded(l deadletter.Letter, text []byte) ([]byte, error) {
	data := bytes.TrimSpace(text)
	if !l.IsJSON() {
		m := contract.New(l.Kind)
		if m == nil {
			return nil, fault.Permanentf(fault.InvalidMessage, "dead letter %d is of no kind that can be repaired", l.ID)
		}
		err := contract.Decode(nats.Header{contract.HeaderContentType: {contract.ContentTypeJSON}}, data, m)
		if err != nil {
			return nil, err
		}
		if data, err = contract.Encode(m); err != nil {
			return nil, err
		}
	}
	return data, l.Fits(data)
}
