package stage_test

import (
	"encoding/base64"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"attentive.internal/deploy/allinone/account"
	"attentive.internal/deploy/allinone/stage"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/peer"
)

// TestNATSCommandLine publishes what anybody can write by hand.
func TestNATSCommandLine(t *testing.T) {
	t.Parallel()
	nats := peer.Need(t, "nats")
	r := run(t, func(*stage.Stage) {})
	pub := func(body string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), nats, "--server", r.Broker.URL(), "pub", contract.JobSubject(contract.Segment, account.Segments),
			"-H", "Content-Type:application/json", body)
		cmd.Env = append(cmd.Environ(), "NATS_TIMEOUT=1m") // the machine may be busy
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", cmd, err, out)
		}
	}
	job := func(id, field string) string {
		return fmt.Sprintf(`{"id":%q,%q:"acme-segments","template":"default","orchestration":{"segment_name":"Friends"},`+
			`"groups":[{"name":"Friends","source":{"inline":%q,"format":"FORMAT_CSV"}}]}`,
			id, field, base64.StdEncoding.EncodeToString([]byte(rows)))
	}
	good, misspelt := uuid.NewString(), uuid.NewString()
	pub(job(misspelt, "destinatoin"))
	pub(job(good, "destination"))
	r.succeeds(t, good)
	for deadline := time.Now().Add(30 * time.Second); len(r.letters(t)) == 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the misspelt job is not among the dead letters")
		}
	}
	letters := r.letters(t)
	if len(letters) != 1 || letters[0].Reason != fault.InvalidMessage || !strings.Contains(letters[0].Detail, "destinatoin") {
		t.Errorf("dead letters %+v, want one of reason %s that names the field destinatoin", letters, fault.InvalidMessage)
	}
}
