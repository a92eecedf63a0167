// Package accesstest asks a running worker what package access decides: the same
// table for both workers, each question a job to a destination of its own.
package accesstest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/publish"
	"attentive.internal/pkg/queuetest"
)

// patience is how long a worker may take for all questions.
const patience = 90 * time.Second

// Question is a job that somebody wants to send.
type Question struct {
	// Name says what the table of decisions says about it.
	Name      string
	Requester *attentivev1.Requester
	Campaign  bool
	// Destination and Template are what they grant, as keys of access.
	Destination, Template string
	// Campaigns is true when the template is available to campaigns.
	Campaigns bool
	// Refused names the rule that refuses the job; empty: it is admitted.
	Refused string

	id string // of the job
}

// Worker is what is asked.
type Worker struct {
	Kind contract.Kind
	// Credentials is a list in YAML that has the credential "account".
	Credentials string
	// Destination has the keys of a destination, in YAML's short form, but for id,
	// name, credential and access; %s is for more keys of its template "default".
	Destination string
	// Publish publishes a job of the source for the question.
	Publish func(ctx context.Context, c *publish.Client, j Job) error
	// Run runs the worker with a configuration until ctx ends.
	Run func(ctx context.Context, config string) error
}

// Job is what is to be published.
type Job struct {
	ID, Destination string
	Requester       *attentivev1.Requester
	Campaign        bool
	Source          *attentivev1.Source
}

func as(restricted bool, policies ...attentivev1.Policy) *attentivev1.Requester {
	return &attentivev1.Requester{Name: "jo@example.com", Policies: policies, RestrictedPii: restricted}
}

// questions has the decisions of the design, row by row.
func questions() []Question {
	const (
		operator      = attentivev1.Policy_POLICY_DATAGRID_OPERATOR
		administrator = attentivev1.Policy_POLICY_DATAGRID_ADMINISTRATOR
		amp360        = attentivev1.Policy_POLICY_AMP360_USER
		ampIQ         = attentivev1.Policy_POLICY_AMPIQ_USER
		business      = "business_users: true"
		restricted    = "restricted_pii: true"
		noServices    = "services: false"
	)
	return []Question{
		{Name: "a service, by default"},
		{Name: "a service where none may", Destination: noServices, Refused: "services"},
		{Name: "a service that the template lets", Destination: noServices, Template: "services: true"},
		{Name: "an operator sees every destination", Requester: as(false, operator)},
		{Name: "so does an administrator", Requester: as(false, administrator), Campaign: true, Campaigns: true},
		{Name: "an operator with restricted PII", Requester: as(true, operator), Refused: "restricted_pii"},
		{Name: "an operator with restricted PII that the destination lets", Requester: as(true, operator), Destination: restricted},
		{Name: "an administrator with restricted PII that the template lets", Requester: as(true, administrator), Template: restricted},
		{Name: "an operator's campaign through a template not for campaigns", Requester: as(false, operator), Campaign: true, Refused: "campaigns"},
		{Name: "a service's campaign through a template not for campaigns", Campaign: true, Refused: "campaigns"},
		{Name: "a service's campaign", Campaign: true, Campaigns: true},
		{Name: "an Amp360 user where business users may not", Requester: as(false, amp360), Refused: "business_users"},
		{Name: "an Amp360 user's orchestration", Requester: as(false, amp360), Destination: business},
		{Name: "an Amp360 user's orchestration by the template", Requester: as(false, amp360), Template: business},
		{Name: "an Amp360 user's campaign", Requester: as(false, amp360), Destination: business, Campaign: true, Campaigns: true, Refused: "policy"},
		{Name: "an AmpIQ user's campaign", Requester: as(false, ampIQ), Destination: business, Campaign: true, Campaigns: true},
		{Name: "an AmpIQ user's orchestration", Requester: as(false, ampIQ), Destination: business, Refused: "policy"},
		{Name: "an AmpIQ user with restricted PII", Requester: as(true, ampIQ), Destination: business, Campaign: true, Campaigns: true, Refused: "restricted_pii"},
		{Name: "an AmpIQ user with restricted PII that is let", Requester: as(true, ampIQ), Destination: business, Template: restricted, Campaign: true, Campaigns: true},
		{Name: "both policies of business users", Requester: as(false, amp360, ampIQ), Destination: business, Campaign: true, Campaigns: true},
	}
}

// Run asks all questions. An admitted job comes as far as its source, which does
// not exist.
func Run(t *testing.T, w Worker) {
	t.Helper()
	server := queuetest.Start(t)
	conn := server.Conn(t)
	kv, err := conn.JS.KeyValue(t.Context(), broker.BucketLedger)
	if err != nil {
		t.Fatal(err)
	}
	asked := questions()
	config := filepath.Join(t.TempDir(), "relay.yaml")
	if err := os.WriteFile(config, []byte(w.config(server.URL, asked)), 0o600); err != nil {
		t.Fatal(err)
	}
	client := publish.New(conn)
	for i := range asked {
		q := &asked[i]
		q.id = uuid.NewString()
		j := Job{ID: q.id, Destination: destination(i), Requester: q.Requester, Campaign: q.Campaign, Source: &attentivev1.Source{
			Location: &attentivev1.Source_Object{Object: "missing"}, Format: attentivev1.Format_FORMAT_CSV,
		}}
		if err := w.Publish(t.Context(), client, j); err != nil {
			t.Fatalf("%s: %v", q.Name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx, config) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("worker: %v", err)
		}
	}()
	deadline := time.Now().Add(patience)
	for i, q := range asked {
		e := outcome(t, ledger.New(kv), deadline, func(l *ledger.Ledger) (*ledger.Record, bool, error) {
			return l.Find(t.Context(), w.Kind, destination(i), q.id)
		})
		switch {
		case q.Refused == "" && e.Reason != fault.SourceMissing:
			t.Errorf("%s: %s: %s, want it admitted", q.Name, e.Reason, e.Detail)
		case q.Refused != "" && (e.Reason != fault.AccessDenied || !strings.Contains(e.Detail, "rule "+q.Refused+":")):
			t.Errorf("%s: %s: %s, want it refused by rule %s", q.Name, e.Reason, e.Detail, q.Refused)
		case strings.Contains(e.Detail, "jo@"):
			t.Errorf("%s: %s names the requester", q.Name, e.Detail)
		}
	}
}

// outcome waits until a job is dead-lettered.
func outcome(t *testing.T, l *ledger.Ledger, deadline time.Time, find func(*ledger.Ledger) (*ledger.Record, bool, error)) ledger.Entry {
	t.Helper()
	for ; ; time.Sleep(10 * time.Millisecond) {
		record, ok, err := find(l)
		if err != nil {
			t.Fatal(err)
		}
		if ok && record.Entry().State.Terminal() {
			return record.Entry()
		}
		if time.Now().After(deadline) {
			t.Fatalf("a job has no outcome within %v", patience)
		}
	}
}

func destination(i int) string { return fmt.Sprintf("d%d", i) }

// config has a destination for each question.
func (w Worker) config(url string, asked []Question) string {
	var b strings.Builder
	fmt.Fprintf(&b, "broker: {url: %q}\nops_address: 127.0.0.1:0\ncredentials:\n%s\ndestinations:\n", url, w.Credentials)
	for i, q := range asked {
		template := fmt.Sprintf("campaigns: %v, access: {%s}", q.Campaigns, q.Template)
		fmt.Fprintf(&b, "- {id: %s, name: Segments, credential: account, access: {%s}, %s}\n",
			destination(i), q.Destination, fmt.Sprintf(w.Destination, template))
	}
	return b.String()
}
