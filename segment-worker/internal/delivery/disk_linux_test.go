package delivery_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"attentive.internal/pkg/queuetest"
	"attentive.internal/pkg/sftptest"
)

// TestFullDiskOfAServer is TestTroubleAtAnyByte with a disk that is full indeed,
// below servers of other makes.
func TestFullDiskOfAServer(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root can make a small disk")
	}
	server := queuetest.Start(t)
	for i, r := range []receiver{
		{name: "OpenSSH", become: func(p *place) {
			p.t.Helper()
			p.openSSH(sftptest.StartOpenSSHInChroot(p.t))
		}},
		{name: "ProFTPD", become: func(p *place) { p.t.Helper(); p.proFTPD(sftptest.StartProFTPD(p.t)) }},
	} {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			const roomy = 64 << 20
			become := r.become
			r.become = func(p *place) {
				t.Helper()
				become(p)
				mount(t, p.local, roomy)
			}
			h := newHostile(t, server, fmt.Sprintf("disk%d", i), r)
			h.meets(trouble{
				name:   "full disk",
				strike: func(h *hostile, k int64) { resize(h.t, h.local, max(k&^4095, 4<<10)) }, // whole pages, rounded down or the lists might fit; of none it would have no limit
				heal:   func(h *hostile) { resize(h.t, h.local, roomy) },
				reason: "storage_full", again: true,
			}, rand.New(rand.NewPCG(4, uint64(i)))) //nolint:gosec // not negative
		})
	}
}

// mount puts a disk of so many bytes at a folder until the test ends. A process
// of its own takes it away, when its input ends: so nothing is left mounted when
// this one is killed, or runs out of time.
func mount(t *testing.T, folder string, size int64) {
	t.Helper()
	err := syscall.Mount("tmpfs", folder, "tmpfs", 0, sized(size))
	if errors.Is(err, os.ErrPermission) {
		t.Skip("root may not make a small disk here") // .ci/run knows of this
	}
	if err != nil {
		t.Fatal(err)
	}
	unmount := exec.CommandContext(context.WithoutCancel(t.Context()), "sh", "-c", `cat; exec umount -l "$0"`, folder)
	unmount.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // not interrupted together with this one
	ends, err := unmount.StdinPipe()
	if err == nil {
		err = unmount.Start()
	}
	if err != nil {
		t.Fatal(errors.Join(err, syscall.Unmount(folder, syscall.MNT_DETACH)))
	}
	t.Cleanup(func() {
		if err := errors.Join(ends.Close(), unmount.Wait()); err != nil {
			t.Error(err)
		}
	})
}

// resize gives such a disk another size.
func resize(t *testing.T, folder string, size int64) {
	t.Helper()
	if err := syscall.Mount("tmpfs", folder, "tmpfs", syscall.MS_REMOUNT, sized(size)); err != nil {
		t.Fatal(err)
	}
}

func sized(bytes int64) string { return fmt.Sprintf("mode=0700,size=%d", bytes) }
