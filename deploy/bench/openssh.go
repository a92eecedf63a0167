package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"

	"attentive.internal/deploy/process"
)

// openSSH is OpenSSH's server in a process of its own, for the user who runs the
// benchmark, who logs in with a key.
type openSSH struct {
	host, port, user string
	folder           string // clients know it by the same path
	hostKey          string // as authorized-key line
	key              string // path of the private key that logs in
	known            string // path of a known_hosts file
	process          *process.Process
}

// startOpenSSH runs a server with its files below dir. The one process takes all
// connections, so that nothing is started in the middle of what is measured but
// what any client of OpenSSH starts.
func startOpenSSH(ctx context.Context, dir string) (*openSSH, error) {
	me, err := user.Current()
	if err != nil {
		return nil, err
	}
	if me.Uid == "0" {
		// Compiled into sshd: root's needs this directory for privilege separation.
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
			return nil, err
		}
	}
	address, err := process.FreeAddress(ctx)
	if err != nil {
		return nil, err
	}
	dir = filepath.Join(dir, "openssh")
	s := &openSSH{
		user: me.Username, folder: filepath.Join(dir, "uploads"),
		key: filepath.Join(dir, "key"), known: filepath.Join(dir, "known_hosts"),
	}
	if s.host, s.port, err = net.SplitHostPort(address); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(s.folder, 0o700); err != nil {
		return nil, err
	}
	for _, name := range []string{s.key, filepath.Join(dir, "hostkey")} {
		if err := complete(ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "bench", "-f", name); err != nil {
			return nil, err
		}
	}
	host, err := os.ReadFile(filepath.Join(dir, "hostkey.pub"))
	if err != nil {
		return nil, err
	}
	s.hostKey = strings.TrimSpace(string(host))
	config := filepath.Join(dir, "sshd_config")
	err = errors.Join(
		os.WriteFile(s.known, fmt.Appendf(nil, "[%s]:%s %s\n", s.host, s.port, s.hostKey), 0o600),
		os.WriteFile(config, []byte(s.config(dir)), 0o600))
	if err != nil {
		return nil, err
	}
	s.process, err = process.Start(exec.CommandContext(ctx, sbin("sshd"), "-D", "-e", "-f", config))
	if err != nil {
		return nil, err
	}
	return s, until(ctx, "sshd", func(ctx context.Context) error {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
		if err == nil {
			err = c.Close()
		}
		return err
	})
}

// config is the server's configuration.
func (s *openSSH) config(dir string) string {
	return strings.Join([]string{
		"Port " + s.port,
		"ListenAddress " + s.host,
		"HostKey " + filepath.Join(dir, "hostkey"),
		"AuthorizedKeysFile " + s.key + ".pub",
		"PidFile none",
		"PasswordAuthentication no",
		"PermitRootLogin yes",
		"StrictModes no",
		"UsePAM no",
		"Subsystem sftp /usr/lib/openssh/sftp-server",
	}, "\n") + "\n"
}

// empty removes what was uploaded.
func (s *openSSH) empty() error {
	files, err := filepath.Glob(filepath.Join(s.folder, "*"))
	for _, file := range files {
		err = errors.Join(err, os.Remove(file))
	}
	return err
}

// sbin returns the path of a system program, which is often not on the PATH of an
// ordinary user.
func sbin(program string) string {
	if path, err := exec.LookPath(program); err == nil {
		if path, err = filepath.Abs(path); err == nil {
			return path
		}
	}
	return filepath.Join("/usr/sbin", program)
}

// complete runs a program to its end.
func complete(ctx context.Context, program string, args ...string) error {
	out, err := exec.CommandContext(ctx, program, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w\n%s", program, strings.Join(args, " "), err, out)
	}
	return nil
}
