// Command store is the application of the tests on a real Kubernetes: a server that is one of an
// online store's services, and the load that its customers are.
//
//	store serve   HTTP/1.1, HTTP/2 by prior knowledge and WebSocket on one port, gRPC on another
//	store load    sends at a rate by several protocols, and prints as JSON what was lost
package main

import (
	"fmt"
	"os"
)

func main() {
	command := ""
	if len(os.Args) > 1 {
		command = os.Args[1]
	}
	var err error
	switch command {
	case "serve":
		err = serve(os.Args[2:])
	case "load":
		err = load(os.Args[2:])
	default:
		err = fmt.Errorf("no command %q: take serve or load", command)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "store:", err)
		os.Exit(1)
	}
}
