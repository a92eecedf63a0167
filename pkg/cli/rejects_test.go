package cli_test

import (
	"testing"

	"google.golang.org/protobuf/proto"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/deadletter"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/reject"
)

func TestRejectedRowsAreWrittenToBeRepaired(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	id := o.enter(ledger.Entry{Kind: contract.Expand, Destination: "acme-attributes", State: ledger.Succeeded}, "", "")
	o.execute("jobs", "rejects", id).expect(t, 0, "has no rejected rows")
	store, err := o.conn.JS.ObjectStore(t.Context(), broker.ObjectsRejects)
	if err != nil {
		t.Fatal(err)
	}
	w := reject.New(store, reject.ObjectName(contract.Expand, "acme-attributes", id))
	for _, row := range []reject.Row{
		{Group: "", Number: 2, Reason: "phone_invalid", Value: []byte("+1206")},
		{Group: "", Number: 3, Reason: "missing"},
	} {
		if err := w.Add(t.Context(), row); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	o.execute("jobs", "rejects", id).expect(t, 0, "group,row,reason,value\n", ",2,phone_invalid,", ",3,missing,\n")
	sent := o.write("sent.csv", "mobile,name\n+12065550101,Ann\n+1206,\"Bob, the builder\"\n,Eve\n")
	r := o.execute("jobs", "rejects", id, "--from", sent)
	r.expect(t, 0)
	if want := "mobile,name,reject_reason\n+1206,\"Bob, the builder\",phone_invalid\n,Eve,missing\n"; r.stdout != want {
		t.Errorf("rows to repair = %q, want %q", r.stdout, want)
	}
	o.execute("jobs", "rejects", id, "--from", o.write("other.csv", "mobile\n1\n")).expect(t, 1, "--from has no row 2")
	o.execute("jobs", "rejects", id, "--from", "none.csv").expect(t, 2, "--from: ")
}

// TestRecordsOfAJobAreWrittenToBeRepaired: rows whose profiles Attentive refused, alone
// or in a batch, come with the rejected ones, in the order of the file.
func TestRecordsOfAJobAreWrittenToBeRepaired(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	id := o.enter(ledger.Entry{Kind: contract.Expand, Destination: "acme-attributes", State: ledger.Succeeded}, "", "")
	refused := func(k contract.Kind, row uint64, reason fault.Reason) {
		t.Helper()
		p := proto.CloneOf(profile())
		if p.Row = row; k == contract.Subscribe {
			p.Operation = &attentivev1.Profile_Subscribe{Subscribe: &attentivev1.Subscribe{}}
		}
		o.put(deadletter.Letter{Kind: k, Destination: "acme-attributes", Job: id, Reason: reason}, p)
	}
	refused(contract.Attributes, 4, fault.Rejected)
	refused(contract.Attributes, 1, fault.Rejected)
	refused(contract.Subscribe, 1, fault.StaleConsent)
	sent := o.write("sent.csv", "mobile,name\n1,Ann\n2,Bob\n3,Cy\n4,Dan\n")
	r := o.execute("jobs", "rejects", id, "--from", sent)
	r.expect(t, 0, "2 of them have dead letters", "dead-letters discard --all --job "+id)
	if want := "mobile,name,reject_reason\n1,Ann,rejected stale_consent\n4,Dan,rejected\n"; r.stdout != want {
		t.Errorf("rows to repair = %q, want %q", r.stdout, want)
	}
	store, err := o.conn.JS.ObjectStore(t.Context(), broker.ObjectsRejects)
	if err != nil {
		t.Fatal(err)
	}
	w := reject.New(store, reject.ObjectName(contract.Expand, "acme-attributes", id))
	for _, n := range []uint64{2, 3} {
		if err := w.Add(t.Context(), reject.Row{Number: n, Reason: "missing"}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	r = o.execute("jobs", "rejects", id)
	want := "group,row,reason,value\n,1,rejected stale_consent,\"dead letter 2, 3\"\n,2,missing,\n,3,missing,\n,4,rejected,dead letter 1\n"
	if r.code != 0 || r.stdout != want {
		t.Errorf("want %q: %v", want, r)
	}
	o.execute("jobs", id).expect(t, 0, "3 dead letters: ", "jobs rejects "+id+" --from FILE")
}
