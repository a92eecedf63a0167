package delivery_test

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/pkg/sftp"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/pkg/ledger"
	"attentive.internal/pkg/queuetest"
	"attentive.internal/pkg/sftptest"
)

// troubles is how often each trouble comes to each receiver.
var troubles = flag.Int("troubles", 8, "how many bytes of a delivery TestTroubleAtAnyByte chooses for each trouble and receiver")

// receiver is a kind of server, and how a destination uses it.
type receiver struct {
	name     string
	settings string
	// become has the place's receiver be of the kind; nil: it is the one in this
	// process.
	become func(*place)
	// takes: files are taken away at once.
	takes bool
	// shows files while they are written: nothing can be renamed.
	shows bool
}

// trouble is what happens at byte k of a delivery. It goes by itself, or heal ends
// it once the job is blocked for its reason.
type trouble struct {
	name   string
	strike func(h *hostile, k int64)
	heal   func(h *hostile)
	reason string
	// again: what was uploaded is not left lying there, and is uploaded again.
	again bool
}

func cut() trouble {
	return trouble{name: "cut", strike: func(h *hostile, k int64) { h.wire.CutAfter(k) }, reason: "unreachable"}
}

func fullDisk() trouble {
	return trouble{
		name: "full disk", strike: func(h *hostile, k int64) { h.sftp.Quota(k) }, heal: func(h *hostile) { h.sftp.Quota(math.MaxInt64) },
		reason: "storage_full", again: true,
	}
}

// TestTroubleAtAnyByte interrupts deliveries at bytes chosen by chance, at
// receivers of several kinds. Each is told as what it is and counts no failure;
// whoever looks into the folder, at any time, sees no file in part; each list is
// published once; nothing is left; and what was whole is not uploaded again.
func TestTroubleAtAnyByte(t *testing.T) {
	t.Parallel()
	server := queuetest.Start(t)
	openSSH := func(p *place) { p.t.Helper(); p.openSSH(sftptest.StartOpenSSHInChroot(p.t)) }
	proFTPD := func(p *place) { p.t.Helper(); p.proFTPD(sftptest.StartProFTPD(p.t)) }
	for i, tt := range []struct {
		receiver
		trouble
	}{
		{receiver{name: "plain"}, cut()},
		{receiver{name: "plain"}, fullDisk()},
		{receiver{name: "takes files away at once", takes: true, settings: ", success_file: true"}, cut()},
		{receiver{name: "forbids renames", shows: true, settings: ", rename: none"}, cut()},
		{receiver{name: "forbids renames", shows: true, settings: ", rename: none"}, fullDisk()},
		{receiver{name: "OpenSSH", become: openSSH}, cut()},
		{receiver{name: "OpenSSH that takes files away at once", become: openSSH, takes: true, settings: ", rename: posix"}, cut()},
		{receiver{name: "ProFTPD", become: proFTPD}, cut()},
	} {
		t.Run(tt.receiver.name+" "+tt.trouble.name, func(t *testing.T) {
			t.Parallel()
			h := newHostile(t, server, fmt.Sprintf("d%d", i), tt.receiver)
			h.meets(tt.trouble, rand.New(rand.NewPCG(4, uint64(i)))) //nolint:gosec // not negative
		})
	}
}

// hostile is a place whose receiver makes trouble, and is watched.
type hostile struct {
	*place
	receiver
	wire *queuetest.Proxy // before the receiver
	jobs int

	mu        sync.Mutex // guards the rest
	whole     map[string]bool
	seen      map[string]bool // final names
	published []string        // contents
}

func newHostile(t *testing.T, server *queuetest.Server, destination string, r receiver) *hostile {
	t.Helper()
	h := &hostile{place: at(t, server, destination), receiver: r, seen: map[string]bool{}}
	if r.become != nil {
		r.become(h.place)
	}
	h.wire = queuetest.StartProxy(t, fmt.Sprintf("nats://%s:%d", h.host, h.port)) // forwards any protocol
	if _, err := fmt.Sscanf(h.wire.URL, "nats://127.0.0.1:%d", &h.port); err != nil {
		t.Fatal(err)
	}
	h.place.settings = "split_rows: 5000" + r.settings
	h.domain = destination
	h.configure()
	// Nothing changes in the folder of the server in this process but by these.
	h.sftp.Intercept(func(op sftptest.Op, _ string) error {
		if op == sftptest.OpRename && r.shows {
			return sftp.ErrSSHFxOpUnsupported
		}
		h.look()
		return nil
	})
	h.sftp.Observe(func(sftptest.Op, string) { h.look() })
	if r.become != nil {
		h.watch()
	}
	h.start()
	return h
}

// watch looks into the folder all the time.
func (h *hostile) watch() {
	ctx, stop := context.WithCancel(context.WithoutCancel(h.t.Context()))
	var watching sync.WaitGroup
	watching.Go(func() {
		for ctx.Err() == nil {
			h.look()
			time.Sleep(time.Millisecond)
		}
	})
	h.t.Cleanup(func() {
		stop()
		watching.Wait()
	})
}

// look notes what is published, takes it away where the receiver does, and fails
// the test for a file that is seen in part.
func (h *hostile) look() {
	h.mu.Lock()
	defer h.mu.Unlock()
	entries, err := os.ReadDir(h.path(""))
	if err != nil {
		h.t.Error(err)
	}
	for _, e := range entries {
		file := e.Name()
		if strings.HasPrefix(file, ".") || strings.HasSuffix(file, ".DONE") || h.seen[file] {
			continue
		}
		content, err := os.ReadFile(h.path(file))
		switch {
		case err != nil:
			h.t.Error(err)
		case h.whole[string(content)]:
			h.seen[file] = true
			h.published = append(h.published, string(content))
			if h.takes {
				h.clean(file)
			}
		case !h.shows:
			h.t.Errorf("%s is seen with %d bytes, in part", file, len(content))
		}
	}
}

// clean removes a file from the folder.
func (h *hostile) clean(file string) {
	if err := os.Remove(h.path(file)); err != nil {
		h.t.Error(err)
	}
}

// listBytes is about what each of the three lists has.
const listBytes = 2000 * int64(len("+12125550000,A100G1\n"))

// meets delivers jobs while the trouble comes at bytes chosen by chance.
func (h *hostile) meets(tr trouble, random *rand.Rand) {
	h.t.Helper()
	before := h.wire.Sent()
	h.delivered(func() {}, func(string) {})
	calm := h.wire.Sent() - before
	struck := 0
	for range *troubles {
		k := random.Int64N(3 * listBytes)
		before := h.wire.Sent()
		id := h.delivered(func() { tr.strike(h, k) }, func(id string) {
			if tr.heal == nil {
				return
			}
			h.blocked(id, tr.reason, "")
			h.intact(k)
			tr.heal(h)
		})
		h.wire.CutAfter(math.MaxInt64 / 2)
		if h.tells(id, tr.reason) {
			struck++
		}
		// What is sent besides: another log-in, and questions about files.
		most := calm + listBytes + listBytes/2
		if got := h.wire.Sent() - before; !tr.again && !h.shows && got > most {
			h.t.Errorf("%s at byte %d: %d bytes are sent, of at most %d: what was whole is uploaded again", tr.name, k, got, most)
		}
		if h.t.Failed() {
			h.t.Fatalf("%s at byte %d; log:\n%s", tr.name, k, h.log)
		}
	}
	if struck < *troubles*3/4 {
		h.t.Errorf("%d of %d times the job was troubled: too few to be true", struck, *troubles)
	}
}

// delivered has a job delivered and looks at what is left of it. strike is called
// before it is sent, and meanwhile after that.
func (h *hostile) delivered(strike func(), meanwhile func(id string)) (id string) {
	h.t.Helper()
	h.jobs++
	j := h.campaign(fmt.Sprintf("A%d", 100+h.jobs), csv(212, 2000), csv(213, 2000), csv(214, 2000))
	want := map[string]bool{}
	for i, area := range []int{212, 213, 214} {
		want[rows(fmt.Sprintf("A%dG%d", 100+h.jobs, i+1), area, 2000)] = true
	}
	h.mu.Lock()
	h.whole, h.published = want, nil
	h.mu.Unlock()
	strike()
	id = h.send(j)
	meanwhile(id)
	e := h.reaches(id, ledger.Succeeded)
	h.idle()
	h.look()
	h.mu.Lock()
	defer h.mu.Unlock()
	if diff := cmp.Diff(slices.Sorted(maps.Keys(want)), slices.Sorted(slices.Values(h.published))); diff != "" {
		h.t.Errorf("published (-want +got):\n%.2000s", diff)
	}
	if e.Failures != 0 {
		h.t.Errorf("%d failures are counted, and the job has none", e.Failures)
	}
	for file := range h.files() {
		if strings.HasPrefix(file, ".") {
			h.t.Errorf("%s is left", file)
		}
		h.clean(file) // the receiver takes it now at the latest
	}
	return id
}

// tells reports whether upstream was told that a job waited for reason, and for
// nothing else.
func (h *hostile) tells(id, reason string) (told bool) {
	h.t.Helper()
	for _, e := range h.events(id) {
		if e.GetState() != attentivev1.JobState_JOB_STATE_BLOCKED {
			continue
		}
		told = true
		if e.GetReason() != reason {
			h.t.Errorf("the job waits for %s: %s; want %s", e.GetReason(), e.GetText(), reason)
		}
	}
	return told
}

// intact fails the test unless all that lies in a full folder is whole.
func (h *hostile) intact(k int64) {
	h.t.Helper()
	h.eventually("end of the attempt", func() bool { return len(h.temporary()) == 0 })
	h.mu.Lock()
	defer h.mu.Unlock()
	for file, content := range h.files() {
		if !h.whole[content] {
			h.t.Errorf("full at byte %d: %s lies there with %d bytes", k, file, len(content))
		}
	}
}
