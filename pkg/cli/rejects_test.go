package cli_test

import (
	"testing"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
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
