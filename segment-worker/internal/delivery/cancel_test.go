package delivery_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/queuetest"
	"attentive.internal/pkg/sftptest"
)

// cancels has a job of two groups cancelled when its second file is begun, and
// calls asked for each operation from then on.
func (p *place) cancels(force ledger.Force, asked func(sftptest.Op) error) (id string) {
	p.t.Helper()
	ids := make(chan string, 1)
	var mu sync.Mutex // guards begun
	begun := 0
	p.sftp.Intercept(func(op sftptest.Op, _ string) error {
		mu.Lock()
		defer mu.Unlock()
		if op == sftptest.OpOpen {
			begun++
		}
		switch {
		case begun < 2:
			return nil
		case op != sftptest.OpOpen:
			return asked(op)
		}
		queued := ledger.Entry{Kind: contract.Segment, Destination: p.destinations[0], JobID: <-ids}
		if _, _, err := p.ledger.Cancel(p.t.Context(), queued, "cancelled", force); err != nil {
			p.t.Error(err)
		}
		return nil
	})
	id = p.send(p.campaign("A", csv(212, 100), csv(213, 1)))
	ids <- id
	p.reaches(id, ledger.Cancelled)
	p.idle()
	return id
}

// TestCancelledJobLeavesNothing: not even until the next job.
func TestCancelledJobLeavesNothing(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		settings string
		force    ledger.Force
		left     []string // what is published stays
	}{
		{"", ledger.Gently, nil},
		{"rename: none", ledger.Forcibly, []string{rows("AG1", 212, 100)}},
	} {
		t.Run("settings "+tt.settings, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			p.settings = tt.settings
			p.configure()
			p.start()
			p.cancels(tt.force, func(sftptest.Op) error { return nil })
			if diff := cmp.Diff(tt.left, slices.Collect(maps.Values(p.files()))); diff != "" {
				t.Errorf("files %v (-want +got):\n%s", slices.Sorted(maps.Keys(p.files())), diff)
			}
		})
	}
}

// TestEveryOperationOfACancellationFails: the job is cancelled all the same, and
// the next one removes what it has left.
func TestEveryOperationOfACancellationFails(t *testing.T) {
	t.Parallel()
	sideBySide(t, 2*7, func(server *queuetest.Server, i int) {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			p := at(t, server, fmt.Sprintf("d%d", i))
			p.domain = p.destinations[0]
			p.configure()
			p.start()
			var mu sync.Mutex // guards asked
			asked := 0
			p.cancels(ledger.Gently, func(sftptest.Op) error {
				mu.Lock()
				defer mu.Unlock()
				if asked++; asked != i/2+1 {
					return nil
				}
				if i%2 == 0 {
					p.sftp.Drop()
				}
				return fmt.Errorf("operation %d fails", asked)
			})
			p.sftp.Intercept(nil)
			e := p.delivers(p.orchestration("B", csv(214, 1)))
			if got := p.files(); len(got) != 1 || !strings.Contains(got[e.Segments[0].GetFiles()[0]], ",B\n") {
				t.Errorf("files %v, want that of the next job", slices.Sorted(maps.Keys(got)))
			}
		})
	})
}

// TestCancelledJobOfADeadHost ends although nobody can look what it has left.
func TestCancelledJobOfADeadHost(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	host := queuetest.StartProxy(t, fmt.Sprintf("nats://%s:%d", p.sftp.Host, p.sftp.Port)) // forwards any protocol
	if _, err := fmt.Sscanf(host.URL, "nats://127.0.0.1:%d", &p.port); err != nil {
		t.Fatal(err)
	}
	p.configure()
	p.start()
	p.cancels(ledger.Gently, func(op sftptest.Op) error {
		host.Down()
		return nil
	})
	if !strings.Contains(p.log.String(), "left for the next job to remove") {
		t.Error("nobody is told of what is left")
	}
}
