package cli_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/fault"
	attentivev1 "attentive.internal/proto/attentive/v1"
)

func TestDiscardNeedsAReason(t *testing.T) {
	t.Parallel()
	m := newMorgue(t)
	m.fill()
	m.execute("dead-letters", "discard", "1").expect(t, 2, `required flag(s) "because" not set`)
	m.execute("dead-letters", "discard", "--because", "x").expect(t, 2, "name the dead letters to discard")
	m.execute("dead-letters", "discard", "--all", "--because", "x", "--dry-run").expect(t, 0, "1  segment acme", "would_discard", "3  segment acme")
	m.execute("dead-letters", "discard", "2", "42", "--because", "a test", "--as", "ann@desk").expect(t, 1, "2  attributes acme-attributes live rejected  discarded", "42: there never was one")
	m.execute("dead-letters", "discard", "2", "--because", "again").expect(t, 0, "2  gone")
	m.execute("dead-letters", "discard", "--all", "--kind", "segment", "--because", "old").expect(t, 0, "1  segment acme "+jobID, "3  segment acme")
	m.execute("dead-letters", "discard", "--all", "--because", "old").expect(t, 0, "nothing to discard")
	if n := m.waiting(); n != 0 {
		t.Errorf("%d messages were put back", n)
	}
	m.execute("actions").expect(t, 0, "ann@desk", "discard dead letters [2 42]", "a test", "discard all dead letters, kind segment", "2 discarded")
}

// edit exports all dead letters, changes the text of the file, and returns its path.
func (m *morgue) edit(from, to string) string {
	m.t.Helper()
	path := filepath.Join(m.t.TempDir(), "letters.ndjson")
	m.execute("dead-letters", "export", "--all", "--file", path).expect(m.t, 0, "they hold personal data")
	text, err := os.ReadFile(path)
	if err != nil {
		m.t.Fatal(err)
	}
	if !strings.Contains(string(text), from) {
		m.t.Fatalf("%q is not in the export: %s", from, text)
	}
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(string(text), from, to)), 0o600); err != nil {
		m.t.Fatal(err)
	}
	return path
}

func TestABadBatchIsRepairedInAFile(t *testing.T) {
	t.Parallel()
	m := newMorgue(t)
	m.fill()
	path := m.edit(`"city":"Oslo"`, `"city":"Bergen"`)
	m.execute("dead-letters", "import", path, "--dry-run").expect(t, 0, "1  segment acme "+jobID+" source_missing  unchanged", "2  attributes", "would_import")
	m.execute("dead-letters", "import", path, "--as", "ann@desk").expect(t, 0, "4  attributes acme-attributes live rejected  edited: it was 2", "unchanged 2, edited 1")
	m.execute("dead-letters", "show", "4").expect(t, 0, "ann@desk", `"city": "***"`)
	m.execute("dead-letters", "import", path).expect(t, 0, "2  attributes acme-attributes live rejected  gone")
	m.execute("dead-letters", "replay", "4").expect(t, 0, "4  attributes acme-attributes live rejected  replayed")
	if got := m.queuedProfile().GetAttributes().GetValues().AsMap()["city"]; got != "Bergen" {
		t.Errorf("replayed city = %v, want what the operator wrote", got)
	}
	// A cluster that is lost: what was exported is stored again.
	m.execute("dead-letters", "discard", "--all", "--because", "rehearsal").expect(t, 0)
	m.execute("dead-letters", "import", path, "--restore").expect(t, 0, "restored: it was 1", "edited: it was 2")
	m.execute("dead-letters", "list").expect(t, 0, "3 in all: invalid_message 1, rejected 1, source_missing 1", "by destination: acme 2, acme-attributes 1")
}

// queuedProfile returns the last profile in the queue.
func (m *morgue) queuedProfile() *attentivev1.Profile {
	m.t.Helper()
	stream, err := m.conn.JS.Stream(m.t.Context(), broker.StreamProfiles)
	if err != nil {
		m.t.Fatal(err)
	}
	raw, err := stream.GetLastMsgForSubject(m.t.Context(), contract.ProfileSubject("acme-attributes", contract.Attributes, contract.LiveJob))
	if err != nil {
		m.t.Fatal(err)
	}
	p := &attentivev1.Profile{}
	if err := contract.Decode(raw.Header, raw.Data, p); err != nil {
		m.t.Fatal(err)
	}
	return p
}

func TestImportJudgesAllBeforeItTakesOne(t *testing.T) {
	t.Parallel()
	m := newMorgue(t)
	m.fill()
	for name, tt := range map[string]struct{ from, to, want string }{
		"unknown field":    {`"city":"Oslo"`, `"city":"Bergen"},"valeus":{"x":"y"`, "valeus"},
		"other job":        {`"message":{"campaign":{"name":"Winback"},"destination":"acme",`, `"message":{"campaign":{"name":"Winback"},"destination":"acne",`, "belongs to"},
		"no dead letter":   {`"id":2,`, `"number":2,`, "it is no dead letter as export writes them"},
		"broken line":      {`"city":"Oslo"`, `"city":"+12065550101`, "syntax error at byte"},
		"not of the kinds": {`"kind":"attributes"`, `"kind":"subscribe"`, ""},
	} {
		path := m.edit(tt.from, tt.to)
		if tt.want == "" {
			continue
		}
		r := m.execute("dead-letters", "import", path)
		r.expect(t, 3, "nothing was imported", path+" line ", tt.want)
		if strings.Contains(r.stderr, "2065550101") {
			t.Errorf("%s: the error tells whom it is about: %v", name, r)
		}
	}
	m.execute("dead-letters", "list").expect(t, 0, "3 in all")
	m.execute("dead-letters", "import", filepath.Join(m.dir, "none.ndjson")).expect(t, 2, "none.ndjson")
	existing := m.write("there", "")
	m.execute("dead-letters", "export", "--all", "--file", existing).expect(t, 2, "exists")
}

func TestReplayWithARepairedPayload(t *testing.T) {
	t.Parallel()
	m := newMorgue(t)
	m.fill()
	m.put(deadletter.Letter{
		Kind: contract.Segment, Destination: "acme", Reason: fault.InvalidMessage,
		Header: nats.Header{contract.HeaderContentType: {contract.ContentTypeJSON}}, Data: []byte(`{"template":"default","grups":["+12065550199"]}`),
	}, nil)
	good := `{"id":"` + jobID + `","destination":"acme","template":"default","orchestration":{"segmentName":"VIP"},
		"groups":[{"name":"g","source":{"inline":"bW9iaWxlCg==","format":"FORMAT_CSV"}}]}`
	m.execute("dead-letters", "replay", "4", "2", "--payload", m.write("m.json", good)).expect(t, 2, "name one ID")
	m.execute("dead-letters", "replay", "4", "--payload", m.write("bad.json", `{"grups":[]}`)).expect(t, 3, "grups", "nothing was changed")
	m.execute("dead-letters", "replay", "4", "--payload", filepath.Join(m.dir, "m.json")).expect(t, 0, "replayed: to attentive.v1.segment.acme")
	if n := m.waiting(); n != 1 {
		t.Errorf("%d messages wait, want one", n)
	}
	m.execute("dead-letters", "list", "--json").expect(t, 0, `"id":1,`, `"id":3,`)
	revealed := m.execute("dead-letters", "show", "2", "--reveal", "--json")
	var v struct{ Message json.RawMessage }
	if err := json.Unmarshal([]byte(revealed.stdout), &v); err != nil {
		t.Fatal(err)
	}
	m.execute("dead-letters", "replay", "2", "--payload", m.write("p.json", strings.Replace(string(v.Message), "Oslo", "Bergen", 1))).expect(t, 0, "replayed")
	if got := m.queuedProfile().GetAttributes().GetValues().AsMap()["city"]; got != "Bergen" {
		t.Errorf("replayed city = %v", got)
	}
}

func TestReplaySaysWhatIsOlder(t *testing.T) {
	t.Parallel()
	m := newMorgue(t)
	m.fill()
	stream, err := m.conn.JS.Stream(t.Context(), broker.StreamProfiles)
	if err != nil {
		t.Fatal(err)
	}
	m.execute("dead-letters", "replay", "--all", "--kind", "attributes", "--dry-run").expect(t, 0, "would_replay: to attentive.v1.profile.acme-attributes.attributes.live\n")
	m.acknowledgeOne(stream)
	m.execute("dead-letters", "replay", "--all", "--kind", "attributes", "--dry-run").
		expect(t, 0, "it is older than updates of this queue that were sent since", "1 of them are older")
	m.execute("dead-letters", "replay", "2", "--rate", "-1").expect(t, 2, "use a number above zero")
	m.execute("dead-letters", "replay", "2", "--rate", "1000").expect(t, 0, "replayed")
}
