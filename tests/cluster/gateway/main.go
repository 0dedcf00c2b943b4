// Command gateway names the module whose CustomResourceDefinitions the tests install.
package main

import _ "sigs.k8s.io/gateway-api/apis/v1"

func main() {}
