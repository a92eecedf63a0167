package delivery_test

import (
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/pause"
	"attentive.internal/pkg/sftptest"
)

// TestPausedDuringAnUpload: the destination is paused while its third file is
// uploaded, and resumed in the same ownership. The two that lie there whole, as
// long as those that come, are kept.
func TestPausedDuringAnUpload(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.settings = "split_rows: 100"
	p.configure()
	stalled := make(chan struct{})
	var once sync.Once
	u := p.uploads(func(op sftptest.Op, begun int) error {
		if op == sftptest.OpWrite && begun == 3 {
			once.Do(func() {
				p.sftp.Stall()
				close(stalled)
			})
		}
		return nil
	})
	t.Cleanup(p.sftp.Resume)
	p.start()
	id := p.send(p.orchestration("VIP", csv(212, 350)))
	<-stalled
	pauses, err := p.conn.JS.KeyValue(t.Context(), broker.BucketPauses)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := pause.Set(t.Context(), pauses, pause.Pause{Destination: "acme", Who: "ann@desk", Why: "audit"}); err != nil {
		t.Fatal(err)
	}
	p.eventually("end of the attempt", func() bool { return strings.Contains(string(p.entry(id).Plan), `"files"`) })
	p.sftp.Resume()
	if _, _, err := pause.Clear(t.Context(), pauses, "acme"); err != nil {
		t.Fatal(err)
	}
	p.reaches(id, ledger.Succeeded)
	p.idle()
	if diff := cmp.Diff(parts(), p.files()); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	if begun, renamed := u.count(); begun != 5 || renamed != 4 {
		t.Errorf("%d files were begun and %d renamed, want 5 and 4; log:\n%s", begun, renamed, p.log)
	}
}
