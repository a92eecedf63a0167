package remote_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"attentive.internal/pkg/peer"
	"attentive.internal/pkg/sftptest"
	"attentive.internal/segment-worker/internal/remote"
)

// BenchmarkPut uploads 500 MB to OpenSSH: as the relay does, as it does to a server
// that announces no larger packets, and as OpenSSH's own client does with the same
// cipher. A connection is made once for ours, and each time for the peer, as a
// script would.
func BenchmarkPut(b *testing.B) {
	const size = 500_000_000
	block := random(size)
	b.Run("relay", func(b *testing.B) { benchmarkPut(b, block, remote.Dial) })
	b.Run("small", func(b *testing.B) { benchmarkPut(b, block, remote.DialSmall) })
	b.Run("sftp", func(b *testing.B) {
		client := peer.Need(b, "sftp")
		s := sftptest.StartOpenSSH(b)
		dir := b.TempDir()
		file, key, known, batch := filepath.Join(dir, "file"), filepath.Join(dir, "key"), filepath.Join(dir, "known"), filepath.Join(dir, "batch")
		for name, text := range map[string][]byte{
			file: block, key: []byte(s.PrivateKey), known: fmt.Appendf(nil, "[%s]:%d %s\n", s.Host, s.Port, s.HostKeys[0]),
			batch: fmt.Appendf(nil, "put %s %s/x\n", file, s.Folder),
		} {
			if err := os.WriteFile(name, text, 0o600); err != nil {
				b.Fatal(err)
			}
		}
		b.SetBytes(size)
		for b.Loop() {
			cmd := exec.CommandContext(b.Context(), client, "-q", "-c", "aes128-gcm@openssh.com", "-P", strconv.Itoa(s.Port), "-i", key,
				"-o", "UserKnownHostsFile="+known, "-b", batch, s.User+"@"+s.Host)
			if out, err := cmd.CombinedOutput(); err != nil {
				b.Fatalf("sftp: %v: %s", err, out)
			}
		}
	})
}

func benchmarkPut(b *testing.B, block []byte, dial func(context.Context, remote.Config) (*remote.Session, error)) {
	cfg, _ := openSSH(b)
	s, err := dial(b.Context(), cfg)
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	b.SetBytes(int64(len(block)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Put(b.Context(), "x", bytes.NewReader(block)); err != nil {
			b.Fatal(err)
		}
	}
}
