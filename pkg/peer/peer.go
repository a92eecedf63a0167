// Package peer finds the external programs that tests measure our work against:
// what a stranger's program reads and writes is the proof that ours is right.
//
// A test whose program is missing skips and says which Debian package has it,
// so that `go test work` passes on a bare machine. With RELAY_REQUIRE_PEERS=1,
// as CI sets it, a missing program is a failure: nothing is skipped unseen.
package peer

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// RequireEnv is the environment variable that turns a skip into a failure when
// it is "1".
const RequireEnv = "RELAY_REQUIRE_PEERS"

// remedy is the command that installs program: Debian's package where it has one.
func remedy(program string) string {
	switch program {
	case "gpg", "gpgconf", "gpg-agent":
		return "apt-get install gnupg"
	case "sshd", "sftp-server":
		return "apt-get install openssh-server"
	case "ssh", "sftp", "ssh-keygen", "ssh-agent", "ssh-add":
		return "apt-get install openssh-client"
	case "proftpd":
		return "apt-get install proftpd-core proftpd-mod-crypto"
	case "openssl":
		return "apt-get install openssl"
	case "prometheus", "promtool":
		return "apt-get install prometheus"
	case "shellcheck", "unzip", "python3", "chromium":
		return "apt-get install " + program
	case "node":
		return "apt-get install nodejs"
	case "versitygw":
		return "go install github.com/versity/versitygw/cmd/versitygw@v1.8.0"
	case "nats":
		return "go install github.com/nats-io/natscli/nats@v0.5.1"
	}
	return "put it on the PATH"
}

// Need returns the absolute path of program. When it is not installed, Need
// skips the test naming the program and its Debian package; when
// RELAY_REQUIRE_PEERS is "1", it fails the test instead.
func Need(t testing.TB, program string) string {
	t.Helper()
	path, ok := find(program)
	if ok {
		return path
	}
	if os.Getenv(RequireEnv) == "1" {
		t.Fatalf("%s is not installed, and %s=1 forbids to skip: %s", program, RequireEnv, remedy(program))
	}
	t.Skipf("%s is not installed: %s", program, remedy(program))
	return ""
}

// find looks on the PATH, then where system programs live, which is often not
// on the PATH of an ordinary user.
func find(program string) (string, bool) {
	if path, err := exec.LookPath(program); err == nil {
		if abs, err := filepath.Abs(path); err == nil {
			return abs, true
		}
	}
	for _, dir := range []string{"/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/lib/openssh"} {
		if path, err := exec.LookPath(filepath.Join(dir, program)); err == nil {
			return path, true
		}
	}
	return "", false
}
