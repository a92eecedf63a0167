package delivery_test

import (
	"runtime"
	"strings"
	"testing"

	"github.com/pkg/sftp"

	"attentive.internal/pkg/sftptest"
)

// TestNothingRunsAfterTheStop stops a worker that has delivered a job and waits
// with another.
func TestNothingRunsAfterTheStop(t *testing.T) { //nolint:paralleltest // it counts goroutines
	p := newPlace(t)
	stop := p.start()
	p.delivers(p.orchestration("VIP", csv(212, 2)))
	p.refuse(sftptest.OpOpen, sftp.ErrSSHFxPermissionDenied)
	p.blocked(p.send(p.orchestration("VIP", csv(212, 2))), "folder_unusable", "")
	if !anyRuns() {
		t.Fatal("nothing is seen of a worker that runs")
	}
	stop()
	p.eventually("end of all goroutines", func() bool { return !anyRuns() })
}

// anyRuns reports whether a goroutine of a worker is alive.
func anyRuns() bool {
	all := make([]byte, 4<<20)
	for stack := range strings.SplitSeq(string(all[:runtime.Stack(all, true)]), "\n\n") {
		for _, part := range []string{"segment-worker/internal/", "pkg/job", "pkg/queue.", "pkg/owner", "pkg/worker", "pkg/ops", "sftp.(*Client)"} {
			if strings.Contains(stack, part) && !strings.Contains(stack, "tRunner") {
				return true
			}
		}
	}
	return false
}
